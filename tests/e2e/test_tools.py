"""Tools and constrained answers on the real model, over the socket, and the document that tells of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from tests.e2e.harness import Daemon, Map, granville, is_ack, is_terminal, running
from tests.e2e.test_docs import ROOT, blocks, run_python

FLAGS = ("--slots", "4", "--context-size", "1024", "--threads", "1")
PERSON: Map = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
TIMER: Map = {
    "name": "set_timer",
    "description": "Start a timer",
    "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
}
WEATHER: Map = {
    "name": "get_weather",
    "description": "Get the current weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> Iterator[Daemon]:
    with (
        tempfile.TemporaryDirectory(prefix="granville-", dir="/tmp") as path,
        running(Path(path), *FLAGS, model=smollm2, driver="granville-llama") as daemon,
    ):
        yield daemon
        assert daemon.stop() == 0


def test_forms_together_on_one_connection(smol: Daemon) -> None:
    asked = {"temperature": 0, "max_tokens": 60, "stream": True}
    tools = {"tools": [WEATHER, {"type": "function", "function": TIMER}]}
    timer = {"text": "Set a timer for 12 minutes.", **tools, **asked}
    requests: list[Map] = [
        {"id": "call", **timer},
        {"id": "talk", "text": "Write a short poem about the sea.", **tools, **asked, "max_tokens": 10},
        {"id": "json", "text": "Alice is 30. Who is she?", "json_schema": PERSON, **asked},
        {"id": "text", "text": "Alice is 30. Who is she?", "json_schema": json.dumps(PERSON), **asked},
        {"id": "gbnf", "text": "Is the sky blue?", "grammar": 'root ::= "yes" | "no"', **asked},
        {"id": "deep", "text": "x", "grammar": "root ::= " + "(" * 20_000, **asked},
        {"id": "none", "text": "x", "json_schema": {"properties": {"p": {"type": "no"}}}, **asked},
    ]
    ended: dict[str, Map] = {}
    streamed = {request["id"]: "" for request in requests}
    with smol.connect() as client:
        client.send(*requests)
        while len(ended) < len(requests):
            message = client.receive()
            if is_terminal(message):
                ended[message["id"]] = message
            elif not is_ack(message):
                streamed[message["id"]] += message["delta"]
    call = ended["call"]
    assert (call["tool_id"], json.loads(call["tool_input_json"])) == ("set_timer", {"minutes": 12})
    assert (call["finish_reason"], streamed["call"]) == ("tool", "")
    assert (ended["talk"]["tool_id"], ended["talk"]["finish_reason"]) == ("__chat__", "length")
    for id in ("talk", "json", "text", "gbnf"):
        assert json.loads(ended[id]["tool_input_json"]) == [streamed[id]]
    assert streamed["json"] == streamed["text"]
    jsonschema.validate(json.loads(streamed["json"]), PERSON)
    assert streamed["gbnf"] in ("yes", "no")
    for id, place in (("deep", "grammar: line 1, column 34"), ("none", "json_schema: at #/properties/p: ")):
        assert (ended[id]["code"], ended[id]["message"].startswith(place)) == (400, True), ended[id]
    same = smol.ask({"id": "twice", "text": "x", "tools": [TIMER, TIMER]})
    assert (same["error"], same["message"].startswith("tools[1].name: 'set_timer'")) == ("bad_request", True)


def test_a_session_remembers_what_was_called(smol: Daemon) -> None:
    with smol.connect() as client:
        turn = {"session_id": "s", "temperature": 0, "max_tokens": 40}
        assert is_ack(client.ask({"id": "1", "text": "What is the weather in Paris?", "tools": [WEATHER], **turn}))
        first = client.receive()
        assert first["tool_id"] == "get_weather"
        assert is_ack(client.ask({"id": "2", "text": "Which city did I ask about?", **turn}))
        second = client.receive()
    assert second["tool_id"] == "__chat__"
    assert "Paris" in second["tool_input_json"]


def test_the_command_line(smol: Daemon, folder: Path) -> None:
    at = ("--temperature", "0", "-s", str(smol.socket))
    (folder / "tools.json").write_text(json.dumps([TIMER]))
    called = granville(folder, "submit", "Set a timer for 5 minutes.", "--tools", str(folder / "tools.json"), *at)
    assert called.stdout == 'set_timer {"minutes": 5}\n', called.stderr
    chosen = granville(
        folder, "submit", "Set a timer for 5 minutes.", "--tools", json.dumps(TIMER), "--tool-choice", "set_timer",
        "--stream", *at,
    )  # fmt: skip
    assert chosen.stdout == called.stdout
    fitted = granville(folder, "submit", "Who is Alice, aged 30?", "--json-schema", json.dumps(PERSON), *at)
    jsonschema.validate(json.loads(fitted.stdout), PERSON)
    (folder / "x.gbnf").write_text('root ::= "yes" | "no"')
    assert granville(folder, "submit", "Sure?", "--grammar", str(folder / "x.gbnf"), *at).stdout in ("yes\n", "no\n")
    missing = granville(folder, "submit", "Sure?", "--grammar", str(folder / "y.gbnf"), *at)
    assert "--grammar" in missing.stderr
    assert missing.returncode != 0


def test_the_example_of_the_protocol_page(smol: Daemon, folder: Path) -> None:
    (code,) = [code for code in blocks(ROOT / "docs" / "protocol.md", "python") if "get_weather" in code]
    printed = dict(line.split(" ", 1) for line in run_python(code, folder, smol.socket).splitlines())
    assert printed["1"] == "calls get_weather {'city': 'Paris'}"
    assert printed["2"].startswith("says {'name': 'Alice', 'age': ")
