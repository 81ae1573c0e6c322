"""From a step to a request, and from an answer to the value that the step promises."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from granville.crucible.journal.records import BadOutput
from granville.crucible.running.answers import answer
from granville.crucible.running.progress import Conversation
from granville.crucible.running.request import Ask, ask
from granville.crucible.tools.interface import Call, Tool, ToolFailed
from granville.crucible.workflow.model import Step
from granville.errors import BadRequest
from granville.wire.messages import FinishReason, Result, chat_json

SCOPE: dict[str, Any] = {
    "text": "hello you", "nothing": None, "number": 3, "sound": b"RIFFxx", "silence": b"", "list": ["a", {"text": "b"}],
    "schema": {"type": "object"}, "said": [{"role": "user", "content": "hi"}],
}  # fmt: skip


def fields(type: Any, input: Any = None, **more: Any) -> dict[str, Any]:
    return ask(Step(id="a", model_type=type, input=input, **more), SCOPE).fields


def answered(
    text: str = "", *, tool: str = "__chat__", output: Any = msgspec.UNSET, finish: FinishReason = "stop"
) -> Result:
    chats = tool in ("__chat__", "__transcript__")
    return Result("id", "m", tool, chat_json(text) if chats else text or "[]", "normal", finish, output=output)


def value_of(step: Step, asked: Ask, result: Result) -> Any:
    return answer(step, asked, result).value


def test_text_goes_as_text_and_with_a_system_as_messages() -> None:
    assert fields("inference", "text") == {"model_type": "inference", "text": "hello you"}
    assert fields("inference", "say {{ number }}", temperature=0.0, stop=("x",))["temperature"] == 0.0
    messages = fields("inference", "text", system="Be {{ number }}.")["messages"]
    assert [(m.role, m.content) for m in messages] == [("system", "Be 3."), ("user", "hello you")]
    assert [m.content for m in fields("inference", messages="{{ said }}", system="S")["messages"]] == ["S", "hi"]
    assert fields("inference", "number")["text"] == "3"
    assert fields("inference", "list")["text"] == '["a",{"text":"b"}]'
    assert fields("inference", "text", json_schema="{{ schema }}")["json_schema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("type", "input", "more", "message"),
    [
        ("inference", "nothing", {}, "input: expected text, got null"),
        ("inference", "sound", {}, "input: expected text, got 6 bytes"),
        ("tts", "nothing", {}, "input: expected text, got null"),
        ("inference", None, {"messages": "{{ text }}"}, r"messages: expected a list of \{role, content\}, got a text"),
        ("inference", None, {"messages": [{"content": "x"}]}, r"messages\[0\]: expected"),
        ("stt", "number", {}, "input: expected sound, as bytes or the path of a file, got an integer"),
        ("stt", "silence", {}, "input: the sound is empty"),
        ("embedding", "{{ [1, none] }}", {}, r"input\[1\]: expected text, got null"),
        ("rerank", "text", {"documents": "{{ number }}"}, "documents: expected a list"),
        ("rerank", "text", {"documents": [{"name": "x"}]}, r"documents\[0\]: expected text, got null"),
    ],
)
def test_what_a_step_cannot_use_is_said_with_its_field(
    type: Any, input: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadOutput, match=message):
        fields(type, input, **more)


def test_sound_documents_and_voices_go_in_their_fields() -> None:
    assert fields("stt", "sound") == {"model_type": "stt", "audio": b"RIFFxx"}
    assert fields("stt", "a/b.wav") == {"model_type": "stt", "audio_path": "a/b.wav"}
    assert fields("tts", "text", voice="joe")["voice"] == "joe"
    assert fields("embedding", "{{ ['a', 'b'] }}")["documents"] == ["a", "b"]
    assert fields("embedding", "text")["text"] == "hello you"
    assert fields("rerank", "text", documents="{{ list }}")["documents"] == ["a", "b"]


def test_a_conversation_is_said_whole_with_its_first_system() -> None:
    step = Step(id="a", model_type="inference", input="text")
    conversation = Conversation()
    first = ask(msgspec.structs.replace(step, system="S"), SCOPE, conversation=conversation)
    got = answer(step, first, answered("hi"))
    assert got.turn == [("system", "S"), ("user", "hello you"), ("assistant", "hi")]
    conversation.add(got.turn)
    again = ask(step, SCOPE, conversation=conversation)
    said = [(m.role, m.content) for m in again.fields["messages"]]
    assert said == [("system", "S"), ("user", "hello you"), ("assistant", "hi"), ("user", "hello you")]
    other = ask(msgspec.structs.replace(step, system="T"), SCOPE, conversation=conversation)
    assert [m.content for m in other.fields["messages"]][:2] == ["T", "hello you"]


def test_tools_are_told_by_name_and_their_calls_are_the_value() -> None:
    async def nothing(arguments: Any, call: Call) -> None: ...

    known = Tool("add", "adds", {"type": "object"}, nothing)

    def find(name: str) -> Tool:
        if name != "add":
            raise ToolFailed(f"{name}: no such tool")
        return known

    step = Step(id="a", model_type="inference", input="text", tools=("add",), tool_choice="required")
    asked = ask(step, SCOPE, find_tool=find)
    assert asked.fields["tools"] == [{"name": "add", "description": "adds", "parameters": {"type": "object"}}]
    called = answer(step, asked, answered('{"a": 1}', tool="add", finish="tool"))
    assert called.value == {"tool": "add", "arguments": {"a": 1}, "text": ""}
    assert called.turn is not None
    assert called.turn[-1] == ("assistant", '{"name": "add", "arguments": {"a": 1}}')
    words = value_of(step, asked, answered("no"))
    assert words == {"tool": None, "arguments": None, "text": "no"}
    with pytest.raises(ToolFailed):
        ask(msgspec.structs.replace(step, tools=("sub",)), SCOPE, find_tool=find)


def test_an_answer_under_a_schema_is_its_value() -> None:
    step = Step(id="a", model_type="inference", input="text", json_schema={"type": "object"})
    asked = ask(step, SCOPE)
    assert value_of(step, asked, answered('{"a": [1, 2.5]}')) == {"a": [1, 2.5]}
    with pytest.raises(BadOutput, match="cut off, so give it more max_tokens"):
        value_of(step, asked, answered('{"a": [1', finish="length"))


def test_sound_and_transcripts() -> None:
    speak = Step(id="a", model_type="tts", input="text")
    assert value_of(speak, ask(speak, SCOPE), answered(tool="__audio__", output=b"RIFF1234")) == b"RIFF1234"
    with pytest.raises(BadOutput, match="bytes of a WAV file"):
        value_of(speak, ask(speak, SCOPE), answered(tool="__audio__", output=b"ID3"))
    with pytest.raises(BadOutput, match="__chat__ and no value"):
        value_of(speak, ask(speak, SCOPE), answered("words"))
    hear = Step(id="a", model_type="stt", input="sound")
    output = {"segments": [{"start": 0.0, "end": 1.0, "text": "hi"}], "language": "en"}
    got = answer(hear, ask(hear, SCOPE), answered("hi", tool="__transcript__", output=output))
    assert got.value == "hi"
    assert got.more == {"text": "hi", **output}
    with pytest.raises(BadOutput, match="promises a text"):
        value_of(hear, ask(hear, SCOPE), answered(tool="__audio__", output=b"RIFF"))


def test_vectors_and_rankings() -> None:
    embed = Step(id="a", model_type="embedding", input="text")
    many = msgspec.structs.replace(embed, input="{{ ['a', 'b'] }}")
    assert value_of(embed, ask(embed, SCOPE), answered(tool="__embedding__", output=[1.0, 2])) == [1.0, 2]
    assert value_of(many, ask(many, SCOPE), answered(tool="__embedding__", output=[[1.0], [2.0]])) == [[1.0], [2.0]]
    for output in ([[1.0]], [1.0, 2.0], None):
        with pytest.raises(BadOutput, match="2 vectors of numbers"):
            value_of(many, ask(many, SCOPE), answered(tool="__embedding__", output=output))
    rank = Step(id="a", model_type="rerank", input="text", documents="{{ list }}", top=1)
    ranked = value_of(rank, ask(rank, SCOPE), answered(tool="__rerank__", output=[0.1, 0.9]))
    assert ranked == [{"index": 1, "score": 0.9, "document": {"text": "b"}}]
    with pytest.raises(BadOutput, match="2 scores"):
        value_of(rank, ask(rank, SCOPE), answered(tool="__rerank__", output=[0.1]))


def test_a_field_that_the_protocol_does_not_have_is_said() -> None:
    asked = Ask({"model_type": "tts", "text": "x", "colour": "red"}, {})
    with pytest.raises(BadRequest, match="colour: this version"):
        asked.request("id", 1000, stream=False)
