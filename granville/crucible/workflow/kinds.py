"""What is known of values before a run: which steps and expressions give text, a list, audio."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from granville.crucible.workflow.model import Input, Kind, Step, Workflow
from granville.crucible.workflow.templates import Form, compiled, evaluate, is_template, render


@dataclass(frozen=True, slots=True)
class Known:
    """A value that there will be."""

    kind: Kind = "any"
    what: str = ""
    """For a sentence: `the text of step answer`."""
    made_by_model: bool = False
    vector: bool = False


ANYTHING = Known()
_WORDS: dict[str, str] = {
    "text": "a text", "number": "a number", "integer": "a whole number", "boolean": "true or false", "list": "a list",
    "object": "a map", "audio": "audio", "any": "anything",
}  # fmt: skip


def in_words(kind: Kind) -> str:
    return _WORDS[kind]


def kind_of_value(value: Any) -> Kind:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, dict):
        return "object"
    kinds: dict[type, Kind] = {
        str: "text",
        int: "integer",
        float: "number",
        list: "list",
        tuple: "list",
        bytes: "audio",
    }
    return kinds.get(type(value), "any")


def fits(known: Kind, wanted: Kind) -> bool:
    """Whether a value of one kind may be what is wanted, as far as kinds tell. A text may be the path of audio."""
    same = known == wanted or "any" in (known, wanted)
    return same or (known, wanted) in {("integer", "number"), ("number", "integer"), ("text", "audio")}


def of_input(name: str, given: Input) -> Known:
    return Known(given.type, f"the input `{name}`")


def of_step(step: Step, within: Callable[[str], Known]) -> Known:
    """What a step puts out. `within` gives what an expression of its group is."""
    made = within(step.result) if step.result is not None else _of_one(step)
    what = f"what step `{step.id}` gives"
    if step.for_each is not None:
        return Known("list", what)
    return Known(made.kind, made.what if step.result is None else what, made.made_by_model, made.vector)


def _of_one(step: Step) -> Known:
    whose = f"of step `{step.id}`"
    if step.model_type in ("inference", "ranker"):
        if step.tools is not None:
            return Known("object", f"the call {whose}")
        if step.json_schema is not None:
            return Known(_of_schema(step.json_schema), f"the answer {whose}", made_by_model=True)
        return Known("text", f"the text {whose}", made_by_model=True)
    if step.model_type == "stt":
        return Known("text", f"the transcript {whose}", made_by_model=True)
    if step.model_type == "tts":
        return Known("audio", f"the speech {whose}")
    if step.model_type == "embedding":
        return Known("list", f"the embedding {whose}", vector=True)
    if step.model_type == "rerank":
        return Known("list", f"the ranking {whose}")
    if step.steps:
        last = of_step(step.steps[-1], lambda _: ANYTHING)
        return Known(last.kind, f"what the last step in `{step.id}` gives", last.made_by_model, last.vector)
    if isinstance(step.workflow, Workflow):
        return Known("any" if step.workflow.outputs is None else "object", f"the outputs {whose}")
    return Known("any", f"what step `{step.id}` gives")


def _of_schema(schema: Any) -> Kind:
    kinds: dict[str, Kind] = {
        "object": "object", "array": "list", "string": "text", "number": "number", "integer": "integer",
        "boolean": "boolean",
    }  # fmt: skip
    named = schema.get("type") if isinstance(schema, Mapping) else None
    return kinds.get(named, "any") if isinstance(named, str) else "any"


def of_text(text: str, form: Form, name: Callable[[tuple[str, ...]], Known]) -> Known:
    """What an expression or a template gives: of a bare name what `name` says, of one that reads nothing its value's.

    Raises TemplateError, also for a constant that cannot be computed, such as `1 / 0`.
    """
    if form == "template" and not is_template(text):
        return Known("text", "a text")
    ready = compiled(text, form)
    if not ready.native:
        return Known("text", "a text")
    if ready.plain:
        (path,) = ready.reads
        return name(path)
    if ready.reads:
        return ANYTHING
    kind = kind_of_value(evaluate(text, {}) if form == "expression" else render(text, {}))
    return Known(kind, in_words(kind))
