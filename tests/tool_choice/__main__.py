"""Does a model call when it should, and only then? `python -m tests.tool_choice MODEL.gguf` asks it the held-out
requests greedily, with `tool_choice: auto`, and prints how often it calls and talks."""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from pathlib import Path

from granville_llama import LlamaDriver

from granville.hosting.interface import Finished, Generate, Message, ModelSpec, Sampling, Tool

HELD_OUT = Path(__file__).with_name("held_out.toml")
MAX_TOKENS = 64


def main() -> None:
    model = LlamaDriver().load(ModelSpec(Path(sys.argv[1]), slots=1, context_size=2048))
    found: Counter[tuple[str, str]] = Counter()
    for number, each in enumerate(tomllib.loads(HELD_OUT.read_text())["set"]):
        tools = tuple(Tool(tool["name"], tool["description"], tool["parameters"]) for tool in each["tools"])
        for wanted in ("call", "talk"):
            for text in each[wanted]:
                job = Generate(
                    f"{number} {text}", (Message("user", text),), MAX_TOKENS, Sampling(temperature=0), tools=tools
                )
                model.submit(job)
                end: Finished | None = None
                said = ""
                while end is None:
                    for event in model.step(None):
                        said += getattr(event, "text", "")
                        end = event if isinstance(event, Finished) else end
                # What is cut off in the middle of a call has begun with a brace, and shows nothing else.
                did = "call" if end.call is not None or said.lstrip().startswith("{") else "talk"
                found[wanted, did] += 1
                print(f"{wanted} -> {did}: {text}: {end.call or said!r}"[:150], flush=True)
    for wanted in ("call", "talk"):
        print(f"that want a {wanted}: calls {found[wanted, 'call']}, talks {found[wanted, 'talk']}")
    model.close()


if __name__ == "__main__":
    main()
