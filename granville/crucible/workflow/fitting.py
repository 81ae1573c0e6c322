"""Whether what a model step is given is what a model of its type takes, as far as that is known before a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from granville.crucible.workflow.kinds import Known, in_words
from granville.crucible.workflow.model import Step
from granville.crucible.workflow.templates import is_name

_PLAIN = frozenset(("any", "text", "number", "integer", "boolean"))


def is_called(value: Any, known: Known) -> str:
    """`question` is a text; a value that stands there itself has no name: this is a text."""
    subject = f"`{value}`" if isinstance(value, str) and is_name(value) else "this"
    what = known.what if known.what and not known.what.startswith("the input") else in_words(known.kind)
    return f"{subject} is {what}"


def unfit(step: Step, kind_of: Callable[[Any, bool], Known]) -> Iterator[tuple[str, str]]:
    """The fields that do not fit, each with a sentence."""
    if step.input is not None:
        bare = isinstance(step.input, str) and is_name(step.input)
        if advice := _advice(step, kind_of(step.input, bare)):
            yield "input", f"{advice}, and {is_called(step.input, kind_of(step.input, bare))}"
    for name in ("documents", "messages"):
        value = getattr(step, name)
        if value is not None and (found := kind_of(value, False)).kind not in ("list", "any"):
            named = isinstance(value, str) and is_name(value)
            hint = f'; the value of a name is written "{{{{ {value} }}}}" here' if named else ""
            yield name, f"expected a list, and {is_called('' if named else value, found)}{hint}"
    if step.system is not None and (found := kind_of(step.system, False)).kind not in _PLAIN | {"list", "object"}:
        yield "system", f"expected a text, and {is_called(step.system, found)}"


def _advice(step: Step, known: Known) -> str | None:
    """What the step takes, when this is not that."""
    kind = known.kind
    if step.model_type == "stt":
        hears = kind in ("audio", "any") or (kind == "text" and not known.made_by_model)
        return None if hears else "an stt step hears audio, or the file of a path"
    if step.model_type == "tts":
        return None if kind in _PLAIN else "a tts step speaks a text"
    if step.model_type == "embedding":
        embeds = kind in _PLAIN or (kind == "list" and not known.vector)
        return None if embeds else "an embedding step takes a text or a list of texts"
    if step.model_type == "rerank":
        return None if kind in _PLAIN else "a rerank step takes the query, a text"
    if kind == "audio" or known.vector:
        return f"{'an' if step.model_type == 'inference' else 'a'} {step.model_type} step reads text"
    return None
