"""What a run, or a workflow in a workflow, is given: complete, and of the kinds that were declared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from granville.crucible.running.request import kind_of
from granville.crucible.workflow.model import Input, Kind, Workflow
from granville.errors import BadRequest

EXPECTED: dict[Kind, str] = {
    "text": "a text", "number": "a number", "integer": "a whole number", "boolean": "true or false", "list": "a list",
    "object": "an object", "audio": "sound: bytes, or a file's path", "any": "anything",
}  # fmt: skip


def checked_inputs(workflow: Workflow, given: Mapping[str, Any]) -> dict[str, Any]:
    """With defaults filled in. Raises BadRequest for what is missing, unknown, or of another kind."""
    unknown = given.keys() - workflow.inputs.keys()
    if unknown:
        known = ", ".join(workflow.inputs) or "none"
        raise BadRequest(f"inputs.{min(unknown)}: {workflow.name} has no such input; it has {known}")
    return {name: _checked(name, declared, given) for name, declared in workflow.inputs.items()}


def _checked(name: str, declared: Input, given: Mapping[str, Any]) -> Any:
    if name not in given or (given[name] is None and declared.default is not None):
        if declared.is_required:
            what = f", {declared.description}" if declared.description else ""
            raise BadRequest(f"inputs.{name}: missing; expected {EXPECTED[declared.type]}{what}")
        return declared.default
    value = given[name]
    if (value is None and not declared.is_required) or _is_of_kind(value, declared.type):
        return value
    raise BadRequest(f"inputs.{name}: expected {EXPECTED[declared.type]}, got {kind_of(value)}")


def _is_of_kind(value: Any, kind: Kind) -> bool:
    match kind:
        case "text":
            return isinstance(value, str)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "list":
            return isinstance(value, list | tuple)
        case "object":
            return isinstance(value, Mapping)
        case "audio":
            return isinstance(value, str | bytes) and len(value) > 0
    return True
