"""A run's inputs: read from the words of a command line, and checked against what the workflow takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from granville.crucible.workflow.bounds import TemplateError, Work, finished
from granville.crucible.workflow.kinds import in_words
from granville.crucible.workflow.model import Kind, Workflow
from granville.crucible.workflow.suggest import did_you_mean
from granville.errors import BadRequest

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def from_text(kind: Kind, text: str) -> Any:
    """The value that a text on a command line stands for: of `list` and `object` JSON, of `audio` the path of a file,
    of `text` and `any` itself. Raises BadRequest."""
    word = text.strip()
    if kind == "boolean":
        if word.lower() not in _TRUE + _FALSE:
            raise BadRequest(f"expected true or false, got {text[:40]!r}")
        return word.lower() in _TRUE
    if kind in ("integer", "number"):
        try:
            number: float = int(word) if re.fullmatch(r"[+-]?[0-9]+", word) else float(word)
        except ValueError:
            raise BadRequest(f"expected {in_words(kind)}, got {text[:40]!r}") from None
        return as_kind(kind, number)
    if kind in ("list", "object"):
        try:
            return as_kind(kind, msgspec.json.decode(text))
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"expected {in_words(kind)} as JSON: {error}") from None
    return text


def as_kind(kind: Kind, value: Any) -> Any:
    """The value as one of that kind: 3.0 is a whole number. A text may be the path of audio. Raises BadRequest."""
    try:
        value = finished(value, Work({}))
    except TemplateError as error:
        raise BadRequest(error.message) from None
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)
    wanted: dict[str, tuple[type, ...]] = {
        "text": (str,), "number": (int, float), "integer": (int,), "boolean": (bool,), "list": (list,),
        "object": (dict,), "audio": (bytes, str),
    }  # fmt: skip
    is_number = kind in ("number", "integer")
    if kind in wanted and (not isinstance(value, wanted[kind]) or (is_number and isinstance(value, bool))):
        shown = "audio" if isinstance(value, bytes) else "nothing" if value is None else repr(value)[:40]
        raise BadRequest(f"expected {in_words(kind)}, got {shown}")
    return value


def check_inputs(workflow: Workflow, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a run, with the defaults of those that were not given. Raises BadRequest, which has all that is
    wrong with them."""
    wrong: list[str] = []
    for name in inputs:
        if name not in workflow.inputs:
            hint = did_you_mean(str(name), workflow.inputs, none="it takes none")
            wrong.append(f"{workflow.name} has no input {str(name)[:80]!r}; {hint}")
    checked: dict[str, Any] = {}
    for name, one in workflow.inputs.items():
        value = inputs.get(name)
        if value is None:
            if one.is_required:
                about = f" ({one.description})" if one.description else ""
                wrong.append(f"the input {name!r}{about} is missing: {in_words(one.type)}")
            checked[name] = one.default
            continue
        try:
            checked[name] = as_kind(one.type, value)
        except BadRequest as error:
            wrong.append(f"the input {name!r}: {error.message}")
    if wrong:
        raise BadRequest("; ".join(wrong))
    return checked
