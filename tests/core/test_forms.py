"""The form that a request wants its answer in: every way to write it, and each mistake by its field."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from granville.errors import BadRequest
from granville.wire import forms
from granville.wire.messages import Request, encode, parse_message

Map = dict[str, Any]
SCHEMA: Map = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PLAIN: Map = {"name": "get_weather", "description": "of a city", "parameters": SCHEMA}


def parsed(**fields: object) -> Request:
    message = msgpack.unpackb(msgpack.packb({"id": "r1", "text": "hello", **fields}), strict_map_key=False)
    request, _ = parse_message(message)
    assert isinstance(request, Request)
    return request


@pytest.mark.parametrize(
    "tool",
    [
        PLAIN,
        {"type": "function", "function": PLAIN},
        {"name": "get_weather", "description": "of a city", "input_schema": SCHEMA},
        {"name": "get_weather", "description": "of a city", "schema": SCHEMA, "parameters": None},
    ],
)
@pytest.mark.parametrize("choice", ["get_weather", {"type": "function", "function": {"name": "get_weather"}}])
def test_every_way_to_write_a_tool_is_one_request(tool: Map, choice: object) -> None:
    request = parsed(tools=[tool], tool_choice=choice)
    assert (request.tools, request.tool_choice) == ([PLAIN], "get_weather")
    assert parse_message(msgpack.unpackb(encode(request))) == (request, 0)


def test_a_tool_needs_no_more_than_a_name() -> None:
    tools = parsed(tools=[{"name": "now"}]).tools
    assert tools == [{"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}]
    assert parsed(tools=[]).tools is None


@pytest.mark.parametrize("schema", [SCHEMA, True, '{"type": "string"}', "true"])
def test_schemas(schema: object) -> None:
    assert parsed(json_schema=schema).json_schema == schema


NAMED_TWICE = [PLAIN, {"name": "b"}, {"function": {"name": "get_weather"}}]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"grammar": " \n"}, "grammar: it is empty"),
        ({"grammar": "x" * (forms.MAX_GRAMMAR_CHARS + 1)}, "grammar: 65537 characters"),
        ({"grammar": "root ::= x", "json_schema": {}}, "json_schema: not together with `grammar`"),
        ({"grammar": "root ::= x", "tools": [PLAIN]}, "tools: not together with `grammar`"),
        ({"json_schema": {}, "tools": [PLAIN]}, "tools: not together with `json_schema`"),
        ({"json_schema": "{"}, "json_schema: not JSON"),
        ({"json_schema": "[" * 100_000}, "json_schema: "),
        ({"json_schema": "[1]"}, "json_schema: a schema is a map"),
        ({"json_schema": "3"}, "json_schema: a schema is a map"),
        ({"json_schema": False}, "json_schema: no answer fits"),
        ({"json_schema": "false"}, "json_schema: no answer fits"),
        ({"json_schema": {"const": "x" * forms.MAX_SCHEMA_CHARS}}, "json_schema: 52430. characters"),
        ({"tools": NAMED_TWICE}, r"tools\[2\]\.name: 'get_weather' is the name of tools\[0\] too"),
        ({"tools": [{"name": f"t{n}"} for n in range(129)]}, "tools: 129 of them, and 128 are the most"),
        ({"tools": [{}]}, r"tools\[0\]\.name: missing"),
        ({"tools": [{"name": 3}]}, r"tools\[0\]\.name: missing"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, r"tools\[0\]\.function\.name: expected 1 to"),
        ({"tools": [{"name": "a" * 65}]}, r"tools\[0\]\.name: expected 1 to"),
        ({"tools": [{"name": "é"}]}, r"tools\[0\]\.name: expected 1 to"),
        ({"tools": [{"name": "__chat__"}]}, r"tools\[0\]\.name: __chat__ is"),
        ({"tools": [{"name": "a", "description": 3}]}, r"tools\[0\]\.description: expected a string"),
        ({"tools": [{"name": "a", "parameters": []}]}, r"tools\[0\]\.parameters: expected the JSON schema"),
        ({"tools": [{"name": "a", "schema": {"type": "array"}}]}, r"tools\[0\]\.schema: expected the JSON schema"),
        ({"tools": [{"name": "a", "parameters": {}, "schema": {}}]}, r"tools\[0\]\.schema: not together"),
        ({"tool_choice": "auto"}, "tool_choice: there are no `tools`"),
        ({"tools": [], "tool_choice": "auto"}, "tool_choice: there are no `tools`"),
        ({"tools": [PLAIN], "tool_choice": "other"}, "tool_choice: expected .*, got 'other'"),
        ({"tools": [PLAIN], "tool_choice": {"function": {}}}, "tool_choice: expected .*, got a map"),
        ({"tools": [PLAIN], "tool_choice": {"function": 3}}, "tool_choice: expected"),
    ],
)
def test_a_mistake_is_named(fields: Map, error: str) -> None:
    with pytest.raises(BadRequest, match=f"^{error}") as refused:
        parsed(**fields)
    assert refused.value.id == "r1"


def test_what_json_has_not_does_not_get_further() -> None:
    tools = parsed(tools=[{"name": "a", "parameters": {"default": b"\xff"}}]).tools
    assert tools is not None
    assert isinstance(tools[0]["parameters"]["default"], str)
