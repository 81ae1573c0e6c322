"""What a request becomes for a driver, and what the driver's value becomes for the client."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from granville.errors import DriverFailed
from granville.hosting.interface import (
    Constraint,
    Embed,
    Finished,
    Generate,
    Message,
    Output,
    Rerank,
    Task,
    Tool,
    ToolCall,
)
from granville.hosting.interface import Usage as DriverUsage
from granville.nursery.tasks import to_result, to_task
from granville.scheduling.job import Job
from granville.scheduling.roster import ModelEntry
from granville.wire.messages import Request, Result, Usage, encode, parse_reply
from tests.core.jobs import make_job

BERT = ModelEntry("bert-1", "embedding", "bert.gguf", "granville-llama")
ROWS: list[list[float]] = [[0.6, 0.8], [1.0, 0.0]]


def job(**fields: Any) -> Job:
    return make_job(request=Request(id="r1", **fields))


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({"model_type": "embedding", "text": "a"}, Embed("7", ("a",))),
        ({"model_type": "embedding", "text": ""}, Embed("7", ("",))),
        ({"model_type": "embedding", "text": None, "documents": ["a", "b"]}, Embed("7", ("a", "b"))),
        ({"model_type": "rerank", "text": "q", "documents": ["a"]}, Rerank("7", "q", ("a",))),
    ],
)
def test_a_task_for_each_type(fields: dict[str, Any], task: Task) -> None:
    assert to_task("7", job(**fields), ()) == task


def test_other_types_generate() -> None:
    task = to_task("7", job(text="hello"), (Message("user", "hello"),))
    assert isinstance(task, Generate)
    assert (task.id, task.messages) == ("7", (Message("user", "hello"),))


@pytest.mark.parametrize(
    ("fields", "value", "tool_id", "output"),
    [
        ({"model_type": "embedding", "text": "a"}, ROWS[:1], "__embedding__", ROWS[0]),
        ({"model_type": "embedding", "text": None, "documents": ["a"]}, ROWS[:1], "__embedding__", ROWS[:1]),
        ({"model_type": "embedding", "text": None, "documents": ["a", "b"]}, ROWS, "__embedding__", ROWS),
        ({"model_type": "rerank", "text": "q", "documents": ["a", "b"]}, [-1.5, 2.0], "__rerank__", [-1.5, 2.0]),
    ],
)
def test_a_value_goes_out_beside_an_empty_list(fields: dict[str, Any], value: Any, tool_id: str, output: Any) -> None:
    result = to_result(job(**fields), BERT, Output("7", value, DriverUsage(9)))
    assert isinstance(result, Result)
    assert (result.tool_id, result.tool_input_json, result.output) == (tool_id, "[]", output)
    assert (result.model_id, result.usage) == ("bert-1", Usage(9, 0, 0))
    assert parse_reply(msgpack.unpackb(encode(result))) == result


@pytest.mark.parametrize(
    ("fields", "event"),
    [
        ({"text": "a"}, Output("7", ROWS, DriverUsage())),
        ({"model_type": "embedding", "text": "a"}, Finished("7", "stop", DriverUsage())),
        ({"model_type": "embedding", "text": "a"}, Output("7", [], DriverUsage())),
        ({"model_type": "rerank", "text": "q", "documents": ["a"]}, Output("7", [1.0, 2.0], DriverUsage())),
    ],
)
def test_a_driver_that_gives_something_else(fields: dict[str, Any], event: Finished | Output) -> None:
    assert isinstance(to_result(job(**fields), BERT, event), DriverFailed)


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({}, None),
        ({"grammar": "root ::= x"}, Constraint("gbnf", "root ::= x")),
        ({"json_schema": {"type": "null"}}, Constraint("json_schema", '{"type":"null"}')),
        ({"json_schema": '{"type": "null"}'}, Constraint("json_schema", '{"type": "null"}')),
        ({"json_schema": True}, Constraint("json_schema", "true")),
    ],
)
def test_constraints(fields: dict[str, Any], constraint: Constraint | None) -> None:
    task = to_task("7", job(text="a", **fields), ())
    assert isinstance(task, Generate)
    assert (task.constraint, task.tools, task.tool_choice) == (constraint, (), "auto")


def test_tools_and_a_call() -> None:
    fields = {"name": "now", "description": "the time", "parameters": {"type": "object"}}
    asked = job(text="a", tools=[fields], tool_choice="now")
    task = to_task("7", asked, ())
    assert isinstance(task, Generate)
    assert (task.tools, task.tool_choice) == ((Tool("now", "the time", {"type": "object"}),), "now")
    arguments = '{"zone": "UTC"}'
    result = to_result(asked, BERT, Finished("7", "tool", DriverUsage(9, 0, 5), ToolCall("now", arguments)))
    assert isinstance(result, Result)
    assert (result.tool_id, result.tool_input_json, result.finish_reason) == ("now", arguments, "tool")
    assert result.call == ("now", {"zone": "UTC"})
    assert result.spoken == '{"name": "now", "arguments": {"zone": "UTC"}}'
    words = to_result(asked, BERT, Finished("7", "stop", DriverUsage()))
    assert isinstance(words, Result)
    assert (words.tool_id, words.call) == ("__chat__", None)
