"""`--json-schema`, `--grammar`, `--tools`, `--tool-choice`: what a person wants of an answer's form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from granville.errors import BadRequest
from granville.wire.messages import Result

MAX_FILE_BYTES = 1 << 20

JsonSchema = Annotated[
    str | None, Parameter(help="The answer is JSON that fits this schema: a file, or the schema itself.")
]
Grammar = Annotated[str | None, Parameter(help="The answer fits this grammar: a file in GBNF, llama.cpp's notation.")]
Tools = Annotated[
    str | None,
    Parameter(help="What the model may call, a list of {name, description, parameters}: a file, or the JSON itself."),
]
ToolChoice = Annotated[
    str | None, Parameter(help="Whether it may talk (auto), must call (required), must not (none); or a tool's name.")
]


def form_fields(
    json_schema: str | None, grammar: str | None, tools: str | None, tool_choice: str | None
) -> dict[str, Any]:
    """The request's fields. Raises BadRequest, which names the option."""
    listed = None if tools is None else _decoded(_content(tools, "--tools"), "--tools")
    return {
        "json_schema": None if json_schema is None else _content(json_schema, "--json-schema"),
        "grammar": None if grammar is None else _read(grammar, "--grammar"),
        "tools": [listed] if isinstance(listed, dict) else listed,
        "tool_choice": tool_choice,
    }


def call_line(result: Result) -> str:
    """A call for a person, and for a shell's `read name arguments`."""
    return f"{result.tool_id} {result.tool_input_json}"


def _content(value: str, option: str) -> str:
    """JSON as it is, when it begins like a map or a list; else what is in the file of that name."""
    return value if value.lstrip()[:1] in ("{", "[") else _read(value, option)


def _read(name: str, option: str) -> str:
    try:
        with Path(name).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise BadRequest(f"{option}: {name} has more than {MAX_FILE_BYTES} bytes")
        return data.decode()
    except OSError as error:
        raise BadRequest(f"{option}: {name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadRequest(f"{option}: {name} is not valid UTF-8") from None


def _decoded(text: str, option: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{option}: not JSON: {error}") from None
