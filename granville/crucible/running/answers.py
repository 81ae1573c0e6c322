"""What Granville has answered as a step's value, checked: a step promises a kind of value, and whoever reads it may
rely on that."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET

from granville.crucible.journal.records import BadOutput
from granville.crucible.running.progress import Turn
from granville.crucible.running.request import Ask, kind_of
from granville.crucible.workflow.model import Step
from granville.wire.messages import Result

WAV = b"RIFF"
SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True)
class Answer:
    value: Any
    usage: dict[str, int] | None
    more: dict[str, Any] = field(default_factory=dict)
    turn: list[Turn] | None = None
    """What the session has grown by."""


def answer(step: Step, ask: Ask, result: Result) -> Answer:
    """Raises BadOutput for an answer that is not what the step promises; it says how to mend that."""
    usage = {
        "prompt_tokens": result.usage.prompt_tokens,
        "cached_tokens": result.usage.cached_tokens,
        "completion_tokens": result.usage.completion_tokens,
    }
    match step.model_type:
        case "stt":
            return _transcript(result, usage)
        case "tts":
            return Answer(_sound(result), usage)
        case "embedding":
            return Answer(_vectors(ask, result), usage)
        case "rerank":
            return Answer(_ranking(step, ask, result), usage)
    text = result.spoken
    turn = [*ask.said, ("assistant", text)]
    if step.tools:
        call = result.call
        name, arguments = call if call is not None else (None, None)
        words = result.text if call is None else ""
        return Answer({"tool": name, "arguments": arguments, "text": words}, usage, {"text": text}, turn)
    if step.json_schema is not None:
        return Answer(_parsed(result), usage, {"text": text}, turn)
    return Answer(text, usage, {"text": text}, turn)


def _parsed(result: Result) -> Any:
    try:
        return msgspec.json.decode(result.text)
    except (msgspec.DecodeError, RecursionError) as error:
        cut = (
            "; it was cut off, so give it more max_tokens or a schema with shorter texts"
            if result.finish_reason == "length"
            else ""
        )
        shown = result.text[:SHOWN_CHARS]
        raise BadOutput(f"the answer is no JSON, though json_schema asks for it ({error}){cut}: {shown!r}") from None


def _transcript(result: Result, usage: dict[str, int]) -> Answer:
    if result.tool_id not in ("__transcript__", "__chat__"):
        raise BadOutput(f"the model answered with {result.tool_id}, and an stt step promises a text")
    more: dict[str, Any] = {"text": result.text}
    if isinstance(result.output, dict):
        more |= {name: result.output[name] for name in ("segments", "language") if name in result.output}
    return Answer(result.text, usage, more)


def _sound(result: Result) -> bytes:
    sound = result.output
    if not isinstance(sound, bytes) or not sound.startswith(WAV):
        raise BadOutput(f"the model answered with {_got(result)}, and a tts step promises the bytes of a WAV file")
    return sound


def _vectors(ask: Ask, result: Result) -> Any:
    vectors = result.output if ask.is_list else [result.output]
    asked = len(ask.fields["documents"]) if ask.is_list else 1
    if not isinstance(vectors, list) or len(vectors) != asked or not all(map(_is_vector, vectors)):
        raise BadOutput(f"the model answered with {_got(result)}, and {asked} vectors of numbers were asked for")
    return vectors if ask.is_list else vectors[0]


def _ranking(step: Step, ask: Ask, result: Result) -> list[dict[str, Any]]:
    scores = result.output
    if not _is_vector(scores) or len(scores) != len(ask.documents):
        raise BadOutput(f"the model answered with {_got(result)}, and {len(ask.documents)} scores were asked for")
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: step.top]
    return [{"index": index, "score": scores[index], "document": ask.documents[index]} for index in best]


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, int | float) for one in value)


def _got(result: Result) -> str:
    return f"{result.tool_id} and no value" if result.output is UNSET else kind_of(result.output)
