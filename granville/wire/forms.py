"""What a request says of its answer's form: a grammar, a schema or tools, checked as far as that needs no model."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from granville.errors import BadRequest

MAX_GRAMMAR_CHARS = 64 * 1024
MAX_SCHEMA_CHARS = 512 * 1024
MAX_TOOLS = 128
MAX_DESCRIPTION_CHARS = 16 * 1024
CHAT = "__chat__"
CHOICES = ("auto", "none", "required")
ARGUMENTS = ("parameters", "input_schema", "schema")
"""Whatever a tool's schema is called where it comes from."""
ANYTHING: dict[str, Any] = {"type": "object", "properties": {}}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def check_constraint(grammar: str | None, json_schema: object, tools: object) -> None:
    """Raises BadRequest: two of them together, or one that is none."""
    given = [
        name for name, value in (("grammar", grammar), ("json_schema", json_schema), ("tools", tools))
        if value is not None
    ]  # fmt: skip
    if len(given) > 1:
        raise BadRequest(f"{given[1]}: not together with `{given[0]}`; the answer can have one form only")
    if grammar is not None and not grammar.strip():
        raise BadRequest("grammar: it is empty; give a GBNF grammar with a rule `root`")
    if grammar is not None and len(grammar) > MAX_GRAMMAR_CHARS:
        raise BadRequest(f"grammar: {len(grammar)} characters, and {MAX_GRAMMAR_CHARS} are the most")
    if json_schema is not None:
        schema_json(json_schema)


def schema_json(schema: object) -> str:
    """A schema as JSON, whichever way it was given. Raises BadRequest."""
    text = schema if isinstance(schema, str) else _json(schema, "json_schema")
    if len(text) > MAX_SCHEMA_CHARS:
        raise BadRequest(f"json_schema: {len(text)} characters as JSON, and {MAX_SCHEMA_CHARS} are the most")
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(text)
        except RecursionError:
            raise BadRequest("json_schema: nested too deep") from None
        except ValueError as error:
            raise BadRequest(f"json_schema: not JSON: {error}") from None
    if schema is False:
        raise BadRequest("json_schema: no answer fits `false`")
    if schema is not True and not isinstance(schema, dict):
        raise BadRequest("json_schema: a schema is a map or `true`, or either of them as JSON in a string")
    return text


def plain_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Each as `name`, `description` and `parameters`, from any of the ways in which they are written; None for none.
    Raises BadRequest, which says where."""
    if not tools:
        return None
    if len(tools) > MAX_TOOLS:
        raise BadRequest(f"tools: {len(tools)} of them, and {MAX_TOOLS} are the most")
    plain = [_plain(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    names = [tool["name"] for tool in plain]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise BadRequest(f"tools[{number}].name: {name!r} is the name of tools[{names.index(name)}] too")
    return plain


def plain_choice(choice: object, tools: list[dict[str, Any]] | None) -> str | None:
    """`auto`, `none`, `required` or the name of one of the tools. Raises BadRequest."""
    if choice is None:
        return None
    if tools is None:
        raise BadRequest("tool_choice: there are no `tools` to choose from")
    if isinstance(choice, dict):
        function = choice.get("function", choice)
        choice = function.get("name") if isinstance(function, dict) else None
    names = [tool["name"] for tool in tools]
    if not isinstance(choice, str) or choice not in (*CHOICES, *names):
        got = repr(choice[:80]) if isinstance(choice, str) else "a map without one"
        raise BadRequest(f"tool_choice: expected {', '.join(CHOICES)} or the name of a tool, got {got}")
    return choice


def _plain(tool: dict[str, Any], path: str) -> dict[str, Any]:
    if isinstance(tool.get("function"), dict):
        tool, path = tool["function"], f"{path}.function"
    name = tool.get("name")
    if not isinstance(name, str):
        raise BadRequest(f"{path}.name: missing; give the name of the tool, a string")
    if not _NAME.fullmatch(name):
        raise BadRequest(f"{path}.name: expected 1 to 64 letters, digits or any of _ . -, got {name[:80]!r}")
    if name == CHAT:
        raise BadRequest(f"{path}.name: {CHAT} is what an answer in words is called")
    description = tool.get("description") or ""
    if not isinstance(description, str) or len(description) > MAX_DESCRIPTION_CHARS:
        raise BadRequest(f"{path}.description: expected a string of up to {MAX_DESCRIPTION_CHARS} characters")
    given = [key for key in ARGUMENTS if tool.get(key) is not None]
    if len(given) > 1:
        raise BadRequest(f"{path}.{given[1]}: not together with `{given[0]}`; they mean the same")
    parameters = tool[given[0]] if given else ANYTHING
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise BadRequest(f"{path}.{given[0]}: expected the JSON schema of an object, a map")
    # There and back: whatever MessagePack has and JSON has not is gone.
    parameters = msgspec.json.decode(_json(parameters, path))
    return {"name": name, "description": description, "parameters": parameters}


def _json(value: object, path: str) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError) as error:
        raise BadRequest(f"{path}: cannot be written as JSON: {error}") from None
