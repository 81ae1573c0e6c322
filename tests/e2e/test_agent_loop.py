"""An agent loop as a workflow drives it: the whole conversation as `messages` with its session, every time. Each turn
after the first reads what is new and nothing else, whatever form its answers have and whatever the daemon meets."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.e2e.harness import Client, Daemon, Map, eventually, is_ack, running

FLAGS = ("--slots", "2", "--context-size", "2048", "--threads", "1", "--no-http")
SYSTEM = "You are an agent. You plan, call one tool at a time, look at what it says, and answer in one short sentence."
TOOLS = [
    {
        "name": name,
        "description": description,
        "parameters": {"type": "object", "properties": {field: {"type": "string"}}, "required": [field]},
    }
    for name, description, field in (
        ("search", "Search the documents for a text", "query"),
        ("calculate", "Calculate an expression", "expression"),
    )
]
STEP = {
    "type": "object",
    "properties": {"thought": {"type": "string", "maxLength": 40}, "done": {"type": "boolean"}},
    "required": ["thought", "done"],
}
MARKS = 16
"""The most that the template puts around a turn, in tokens, with the last token that the model has said."""


@contextmanager
def serving(folder: Path, model: Path) -> Iterator[Daemon]:
    with running(folder, *FLAGS, model=model, driver="granville-llama") as daemon:
        yield daemon


def has_written(folder: Path, since: float) -> bool:
    return any(path.stat().st_mtime >= since for path in (folder / "kv").rglob("session-*.kv"))


def wish(**what: object) -> Map:
    return {"op": "warm", "ttl_ms": 60_000, "wait": True, "rid": 1} | what


class Agent:
    """One conversation, and what its turns have read."""

    def __init__(self, session: str, messages: list[Map] | None = None) -> None:
        self.session = session
        self.messages = messages or [{"role": "system", "content": SYSTEM}]
        self.turns = 0
        self.before: Map | None = None

    def turn(self, client: Client, text: str, **form: object) -> Map:
        """A turn of the user, and the answer, kept as a client keeps it: as it came."""
        self.messages.append({"role": "user", "content": text})
        id = f"{self.session}-{self.turns}"
        request = {"id": id, "session_id": self.session, "messages": self.messages, "temperature": 0, "max_tokens": 40}
        assert is_ack(client.ask(request | form))
        result = client.end_of(id)
        assert "usage" in result, result
        content = result["tool_input_json"]
        if result["tool_id"] == "__chat__":
            (content,) = json.loads(content)
        else:
            content = f'{{"name": {json.dumps(result["tool_id"])}, "arguments": {content}}}'
        self.messages.append({"role": "assistant", "content": content})
        usage = result["usage"]
        read = usage["prompt_tokens"] - usage["cached_tokens"]
        if self.before is not None:
            held = self.before["prompt_tokens"] + self.before["completion_tokens"]
            new = usage["prompt_tokens"] - held
            print(f"{id}: prompt {usage['prompt_tokens']}, cached {usage['cached_tokens']}, read {read}, new {new}")
            assert 0 < new <= len(text) // 2 + MARKS, "nothing is in the prompt but what was said"
            assert read <= new + 1, "the last token of an answer is read with what follows it"
        self.turns += 1
        self.before = usage
        return result


def test_eight_turns_read_new_tokens_only(folder: Path, smollm2: Path) -> None:
    """Plain answers, answers of a schema, calls with what the tools have said behind them; the daemon is stopped, then
    killed, in between, and another conversation takes its slots."""
    agent, other = Agent("run/agent"), Agent("run/other")
    with serving(folder, smollm2) as daemon, daemon.connect() as client:
        agent.turn(client, "Find out how high the tower is, in feet.", tools=TOOLS, tool_choice="required")
        agent.turn(client, "The tool says: the tower is 330 m high.", tools=TOOLS, tool_choice="required")
        other.turn(client, "What is a tower?")
        other.turn(client, "And a bridge?")
        agent.turn(client, "The tool says: 1082.68", tools=TOOLS, tool_choice="required")
        assert daemon.stop() == 0
    with serving(folder, smollm2) as daemon, daemon.connect() as client:
        for text in ("nothing found.", '"yes" {1} [2].'):
            began = time.time()
            agent.turn(client, f"The tool says: {text}", tools=TOOLS, tool_choice="required")
            eventually(partial(has_written, folder, began))  # states are written behind the answers
        daemon.signal(signal.SIGKILL)
        daemon.wait()
    with serving(folder, smollm2) as daemon, daemon.connect() as client:
        assert {"state": "warm"}.items() <= client.ask(wish(session_id="run/agent")).items(), "from disk"
        for text in ("Look once more.", "And the width?", "Thank you, that is all."):
            agent.turn(client, f"The tool says: {text}", tools=TOOLS, tool_choice="required")
        other.turn(client, "Which is older?", json_schema=STEP)
        other.turn(client, "Why?", json_schema=STEP)
        other.turn(client, "Shorter.")
    assert agent.turns == 8


def test_branches_of_a_conversation_read_what_the_model_said_once_more_and_then_only_what_is_new(
    folder: Path, smollm2: Path
) -> None:
    """What a model has said is its session's own: another session reads it as a prompt, once."""
    with serving(folder, smollm2) as daemon, daemon.connect() as client:
        trunk = Agent("run/trunk")
        first = trunk.turn(client, "Name a fruit.")
        trunk.turn(client, "And another one.")
        branches = [Agent(f"run/branch-{index}", list(trunk.messages)) for index in range(2)]
        for branch in branches:
            usage = branch.turn(client, f"Now tell {branch.session} about it.")["usage"]
            assert usage["cached_tokens"] >= first["usage"]["prompt_tokens"] - 2
        for text in ("Go on.", "And then?"):
            for branch in branches:
                branch.turn(client, text)


def test_a_step_that_is_known_beforehand_reads_its_input_only(folder: Path, smollm2: Path) -> None:
    with serving(folder, smollm2) as daemon, daemon.connect() as client:
        system = {"role": "system", "content": f"{SYSTEM} You judge what others have said, and say why."}
        reply = client.ask(wish(messages=[system], tools=TOOLS, tool_choice="required"))
        assert (reply["state"], reply["cached_tokens"]) == ("warm", 0)
        judge = Agent("run/judge", [system])
        usage = judge.turn(client, "Is this true?", tools=TOOLS, tool_choice="required")["usage"]
        assert usage["cached_tokens"] == reply["prompt_tokens"] > 150
        assert usage["prompt_tokens"] - usage["cached_tokens"] <= MARKS
        assert daemon.status()["warm"]["hits"] == 1
