"""Arguments, checked against a schema that is not our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from granville.crucible.tools.extra import needed
from granville.crucible.tools.interface import Tool, ToolFailed

MAX_SHOWN_CHARS = 200


def check_arguments(tool: Tool, arguments: Mapping[str, Any]) -> None:
    """Raises ToolFailed, which names the argument that does not fit. Bytes are a text here, as base64."""
    schema = tool.parameters if tool.checks is None else tool.checks
    if not schema:
        return
    jsonschema = needed("jsonschema", "tools with a schema of their own")
    referencing = needed("referencing", "tools with a schema of their own")
    # A registry of its own: without one a `$ref` to another machine is fetched from there.
    validator = jsonschema.Draft202012Validator(schema, registry=referencing.Registry())
    try:
        error = jsonschema.exceptions.best_match(validator.iter_errors(msgspec.to_builtins(dict(arguments))))
    except (RecursionError, referencing.exceptions.Unresolvable, jsonschema.exceptions.SchemaError) as wrong:
        raise ToolFailed(f"{tool.name}: its own schema cannot be used: {str(wrong)[:MAX_SHOWN_CHARS]}") from None
    if error is None:
        return
    path = error.json_path.removeprefix("$").removeprefix(".")
    message = error.message if len(error.message) <= MAX_SHOWN_CHARS else f"{error.message[:MAX_SHOWN_CHARS]}…"
    raise ToolFailed(f"{tool.name}: the argument `{path}`: {message}" if path else f"{tool.name}: arguments: {message}")
