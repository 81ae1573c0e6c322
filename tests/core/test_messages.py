"""Messages: typed values and their exact maps; whatever is wrong is named, with the request's id."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.errors import WIRE_ERRORS, BadRequest, GranvilleError, QueueFull, UnknownModel
from granville.wire import messages as wire
from granville.wire.messages import (
    Ack,
    ChatMessage,
    Control,
    ControlReply,
    Delta,
    ErrorReply,
    Request,
    Result,
    Usage,
    chat_json,
    encode,
    error_reply,
    parse_message,
    parse_reply,
    same_work,
)

Map = dict[str, Any]

LEAST: Map = {"id": "r1", "text": "hello"}

names = st.text(min_size=1, max_size=20)
counts = st.integers(0, 2**31 - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=8), json_values, max_size=3)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Map]:
    return st.fixed_dictionaries({}, optional=fields)


turns = st.lists(st.builds(ChatMessage, st.sampled_from(["system", "user", "assistant"]), st.text()), min_size=1)
documents = st.lists(st.text(), min_size=1, max_size=3)
answering = st.sampled_from(["inference", "ranker"])
content = st.one_of(
    st.fixed_dictionaries({"text": st.text()}, optional={"model_type": answering, "documents": documents}),
    st.fixed_dictionaries({"messages": turns}, optional={"model_type": answering, "documents": st.none()}),
    st.fixed_dictionaries({"model_type": st.just("embedding"), "text": st.text()}),
    st.fixed_dictionaries({"model_type": st.just("embedding"), "documents": documents}),
    st.fixed_dictionaries({"model_type": st.just("rerank"), "text": st.text(), "documents": documents}),
)
settings = optional(
    callback=maybe(st.sampled_from(["/tmp/answers.sock", "tcp://127.0.0.1:9001", "http://localhost/answer"])),
    ranked=st.booleans(),
    priority=maybe(st.sampled_from(get_args(wire.Class))),
    model_id=maybe(names),
    session_id=maybe(names),
    max_tokens=st.integers(1, 2**31 - 1),
    temperature=st.floats(0, 100),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=counts,
    min_p=st.floats(0, 1),
    repeat_penalty=st.floats(0, 100, exclude_min=True),
    seed=maybe(st.integers(0, 2**32 - 2)),
    stop=maybe(st.lists(st.text(min_size=1, max_size=20), max_size=wire.MAX_STOP_STRINGS)),
    stream=st.booleans(),
    timeout_ms=maybe(st.integers(1, 2**53)),
    reset_cache=st.booleans(),
    overflow=st.sampled_from([None, "drop_oldest"]),
    client=maybe(names),
    audio=maybe(st.binary()),
    audio_path=maybe(names),
    voice=maybe(names),
    language=maybe(names),
    words=st.booleans(),
    speed=maybe(st.floats(0.25, 4)),
)
tool = st.fixed_dictionaries({
    "name": st.sampled_from(["get_weather", "a.b-c"]),
    "description": st.text(),
    "parameters": objects.map(lambda schema: schema | {"type": "object"}),
})  # fmt: skip
forms: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({}),
    st.fixed_dictionaries({"grammar": st.text(min_size=1).filter(str.strip)}),
    st.fixed_dictionaries({"json_schema": objects | st.just(True) | objects.map(json.dumps)}),
    st.fixed_dictionaries(
        {"tools": st.lists(tool, min_size=1, max_size=2, unique_by=lambda tool: str(tool["name"]))},
        optional={"tool_choice": st.sampled_from([None, "auto", "none", "required"])},
    ),
)
requests = st.builds(
    lambda id, content, form, settings: Request(id=id, **content, **form, **settings),
    st.text(min_size=1, max_size=wire.MAX_ID_CHARS),
    content,
    forms,
    settings,
)


def over_the_wire(message: Any) -> Any:
    return msgpack.unpackb(encode(message), raw=False)


@given(requests)
def test_a_request_round_trips(request: Request) -> None:
    assert parse_message(over_the_wire(request)) == (request, 0)


def test_overflow_error_is_what_happens_anyhow() -> None:
    request, unknown = parse_message({"id": "a", "text": "b", "overflow": "error"})
    assert (request, unknown) == (Request(id="a", text="b"), 0)


def test_the_strategy_knows_every_field() -> None:
    """So that a new field cannot be left out of the round trip."""
    known = {"id", "text", "messages"} | {
        "callback", "ranked", "priority", "model_id", "session_id", "model_type", "max_tokens", "temperature",
        "top_p", "top_k", "min_p", "repeat_penalty", "seed", "stop", "grammar", "json_schema", "tools",
        "tool_choice", "stream", "timeout_ms", "reset_cache", "overflow", "client", "audio", "audio_path", "documents",
        "voice", "language", "words", "speed",
    }  # fmt: skip
    assert set(Request.__struct_fields__) == known


@given(
    st.builds(
        Control,
        op=st.sampled_from(["models", "status", "cancel", "ping", "drain", "load", "unload"]),
        rid=maybe(st.text() | st.integers(-(2**63), 2**64 - 1)),
        id=st.text(min_size=1, max_size=wire.MAX_ID_CHARS),
        model=st.text(min_size=1, max_size=20),
        slots=maybe(st.integers(1, wire.MAX_SLOTS)),
        context_size=maybe(st.integers(0, 2**31 - 1)),
        model_id=st.text(min_size=1, max_size=20),
        force=st.booleans(),
    )
)
def test_a_control_operation_round_trips(control: Control) -> None:
    assert parse_message(over_the_wire(control)) == (control, 0)


usages = st.builds(Usage, counts, counts, counts)
results = st.builds(
    Result,
    id=names,
    model_id=names,
    tool_id=names,
    tool_input_json=st.text(),
    priority=st.sampled_from(get_args(wire.Class)),
    finish_reason=st.sampled_from(get_args(wire.FinishReason)),
    usage=usages,
) | st.builds(
    Result,
    id=names,
    model_id=names,
    tool_id=st.just("__embedding__"),
    tool_input_json=st.just("[]"),
    priority=st.just("low"),
    output=st.lists(st.floats(allow_nan=False), max_size=5) | st.binary(max_size=20),
)
errors = st.builds(
    ErrorReply,
    id=maybe(names),
    error=st.sampled_from(sorted(WIRE_ERRORS)),
    code=st.integers(400, 599),
    message=st.text(),
    retry_after_ms=counts,
    rid=st.text() | st.integers(0, 2**63),
)


@given(st.builds(Ack, names) | results | errors | st.builds(Delta, names, st.text() | st.binary()))
def test_a_reply_round_trips(reply: Ack | Result | ErrorReply | Delta) -> None:
    assert parse_reply(over_the_wire(reply)) == reply


def test_a_control_reply_keeps_its_keys() -> None:
    answer = {"ok": True, "version": "1", "rid": 7}
    assert parse_reply(over_the_wire(answer)) == ControlReply(answer)
    # A job's status has an id and a state and is no ACK.
    status = {"id": "r1", "state": "waiting", "position": 3, "eta_ms": None}
    assert parse_reply(status) == ControlReply(status)


def test_the_exact_request_of_the_protocol() -> None:
    sent = {
        "id": "req-1",
        "text": "What is the capital of France?",
        "callback": "/tmp/answers.sock",
        "ranked": True,
        "priority": None,
        "model_id": None,
        "session_id": None,
    }
    request, unknown = parse_message(dict(sent))
    assert isinstance(request, Request)
    assert {key: getattr(request, key) for key in sent} == sent
    assert (unknown, request.max_tokens, request.stream, request.model_type) == (0, 256, False, "inference")


def test_the_exact_ack() -> None:
    assert over_the_wire(Ack("r1")) == {"id": "r1", "status": "accepted"}


def test_the_exact_result_of_a_chat() -> None:
    text = 'He said "no"\n✓'
    result = Result("r1", "llama-a1b2c3", "__chat__", chat_json(text), "high", "length", Usage(12, 8, 3))
    assert over_the_wire(result) == {
        "id": "r1",
        "model_id": "llama-a1b2c3",
        "tool_id": "__chat__",
        "tool_input_json": result.tool_input_json,
        "priority": "high",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 12, "cached_tokens": 8, "completion_tokens": 3},
    }
    assert json.loads(result.tool_input_json) == [text]
    assert result.text == text


@given(st.text())
def test_the_text_of_a_chat_answer(text: str) -> None:
    for tool_id in ("__chat__", "__transcript__"):
        assert Result("r", "m", tool_id, chat_json(text), "low").text == text


def test_a_tool_call_has_its_arguments_as_text() -> None:
    assert Result("r", "m", "get_weather", '{"city": "Oslo"}', "low").text == '{"city": "Oslo"}'


def test_output_is_a_key_only_when_set() -> None:
    bare = Result("r", "m", "__chat__", "[]", "low")
    assert "output" not in over_the_wire(bare)
    assert over_the_wire(msgspec.structs.replace(bare, output=[0.5]))["output"] == [0.5]


def test_the_exact_error() -> None:
    assert over_the_wire(error_reply("r1", UnknownModel("no such model"))) == {
        "id": "r1",
        "error": "unknown_model",
        "code": 404,
        "message": "no such model",
    }
    full = over_the_wire(error_reply(None, QueueFull("full", retry_after_ms=40), rid=7))
    assert full == {"id": None, "error": "queue_full", "code": 429, "message": "full", "retry_after_ms": 40, "rid": 7}


@pytest.mark.parametrize("kind", WIRE_ERRORS.values(), ids=lambda kind: str(kind.error))
def test_an_error_comes_back_as_the_exception_it_was(kind: type[GranvilleError]) -> None:
    sent = kind("so it is")
    sent.retry_after_ms = 70
    reply = parse_reply(over_the_wire(error_reply("r1", sent)))
    assert isinstance(reply, ErrorReply)
    back = reply.exception()
    assert (type(back), back.message, back.retry_after_ms) == (kind, "so it is", 70)


def test_the_codes_of_the_protocol() -> None:
    assert {name: kind.code for name, kind in WIRE_ERRORS.items()} == {
        "bad_request": 400, "unknown_model": 404, "unknown_job": 404, "deadline_exceeded": 408, "conflict": 409,
        "too_large": 413, "prompt_too_long": 413, "unsupported": 422, "queue_full": 429, "cancelled": 499,
        "internal": 500, "driver_failed": 502, "shutting_down": 503, "no_model": 503,
    }  # fmt: skip


def test_an_error_of_a_later_version_is_still_an_error() -> None:
    reply = parse_reply({"id": "r1", "error": "unheard_of", "code": 418, "message": "m"})
    assert isinstance(reply, ErrorReply)
    assert type(reply.exception()) is GranvilleError


BAD_FIELDS: list[tuple[str, Any]] = [
    ("text", 5),
    ("text", b"bytes"),
    ("text", ["a"]),
    ("callback", 7),
    ("callback", ""),
    ("callback", "/" * 4097),
    ("ranked", "yes"),
    ("ranked", 1),
    ("priority", "urgent"),
    ("priority", 1),
    ("priority", ["low"]),
    ("model_id", 3),
    ("model_id", ""),
    ("session_id", 3),
    ("session_id", "s" * 257),
    ("model_type", "painter"),
    ("model_type", None),
    ("max_tokens", -1),
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("max_tokens", 2**31),
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", "warm"),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_p", float("nan")),
    ("top_k", -1),
    ("min_p", 2),
    ("repeat_penalty", 0),
    ("seed", -1),
    ("seed", 2**32 - 1),
    ("stop", "a string"),
    ("stop", [""]),
    ("stop", ["x"] * 17),
    ("grammar", {}),
    ("json_schema", 5),
    ("json_schema", {1: 2}),
    ("tools", {}),
    ("tools", ["a"]),
    ("tools", [{1: 2}]),
    ("tool_choice", 1),
    ("stream", "true"),
    ("timeout_ms", 0),
    ("timeout_ms", -5),
    ("timeout_ms", 2.5),
    ("reset_cache", 0),
    ("overflow", "drop_newest"),
    ("client", ""),
    ("audio", "aGVsbG8="),
    ("audio_path", ""),
    ("documents", "one"),
    ("documents", [1]),
    ("documents", []),
    ("documents", ["d"] * (wire.MAX_DOCUMENTS + 1)),
    ("voice", 4),
    ("language", 49),
    ("words", "yes"),
    ("speed", 0.2),
    ("speed", 4.1),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_a_bad_field_is_named_with_the_requests_id(field: str, value: Any) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_message({**LEAST, field: value})
    assert refused.value.message.split(":")[0].split("[")[0].split(".")[0] == field
    assert refused.value.id == "r1"


def test_every_field_has_a_bad_value_above() -> None:
    assert {field for field, _ in BAD_FIELDS} == set(Request.__struct_fields__) - {"id", "messages"}


@pytest.mark.parametrize(
    "bad",
    [
        "hello",
        [],
        ["hello"],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": 3}],
        [{"role": "", "content": "x"}],
        [{1: 2}],
        [{"role": "user", "content": "x"}] * 10_001,
    ],
)
def test_bad_messages_are_named(bad: Any) -> None:
    with pytest.raises(BadRequest, match=r"^messages") as refused:
        parse_message({"id": "r1", "messages": bad})
    assert refused.value.id == "r1"


@pytest.mark.parametrize("id", [None, 7, "", "x" * 129, b"r1", ["r1"]])
def test_an_id_that_cannot_be_used_is_named_and_not_repeated(id: Any) -> None:
    with pytest.raises(BadRequest, match=r"^id: ") as refused:
        parse_message({"id": id, "text": "hello"})
    assert refused.value.id is None


def test_missing_fields() -> None:
    with pytest.raises(BadRequest, match=r"^id: missing"):
        parse_message({"text": "hello"})
    with pytest.raises(BadRequest, match=r"^text: missing") as refused:
        parse_message({"id": "r1"})
    assert refused.value.id == "r1"
    with pytest.raises(BadRequest, match=r"^messages: give either"):
        parse_message({**LEAST, "messages": [{"role": "user", "content": "x"}]})


def test_longest_id() -> None:
    parsed, _ = parse_message({**LEAST, "id": "é" * 128})
    assert parsed.id == "é" * 128


@pytest.mark.parametrize(
    ("value", "kind"),
    [([1], "an array"), ("x", "a string"), (3, "an integer"), (None, "nil"), (True, "a boolean"), (b"x", "bytes")],
)
def test_a_message_must_be_a_map(value: object, kind: str) -> None:
    with pytest.raises(BadRequest, match=f"must be a map, got {kind}"):
        parse_message(value)
    with pytest.raises(BadRequest, match=f"must be a map, got {kind}"):
        parse_reply(value)


def test_keys_must_be_strings() -> None:
    with pytest.raises(BadRequest, match="keys must be strings, got an integer") as refused:
        parse_message(LEAST | {5: "x"})
    assert refused.value.id == "r1"


@pytest.mark.parametrize("written", ["CRITICAL", "Critical", "critical", "cRiTiCaL"])
def test_a_priority_in_any_case(written: str) -> None:
    request, _ = parse_message({**LEAST, "priority": written})
    assert isinstance(request, Request)
    assert request.priority == "critical"


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("priority", "urgent", get_args(wire.Class)),
        ("model_type", "painter", get_args(wire.ModelType)),
        ("op", "dance", ("models", "status", "cancel", "ping", "drain", "load", "unload")),
    ],
)
def test_a_wrong_choice_is_told_what_would_be_right(field: str, value: str, allowed: tuple[str, ...]) -> None:
    sent = {"op": value} if field == "op" else {**LEAST, field: value}
    with pytest.raises(BadRequest) as refused:
        parse_message(sent)
    assert all(name in refused.value.message for name in allowed)
    assert value in refused.value.message


def test_unknown_fields_are_ignored_and_counted() -> None:
    request, unknown = parse_message({**LEAST, "colour": "blue", "nested": {"a": [1]}, "stream": True})
    assert (request, unknown) == (Request(id="r1", text="hello", stream=True), 2)


def test_nesting_is_bounded_at_the_level() -> None:
    def nested(levels: int) -> object:
        value: object = 1
        for _ in range(levels):
            value = [value]
        return value

    parse_message({**LEAST, "unknown": nested(wire.MAX_NESTING - 1)})
    with pytest.raises(BadRequest, match="unknown: nested deeper than 32 levels"):
        parse_message({**LEAST, "unknown": nested(wire.MAX_NESTING)})


@pytest.mark.parametrize("place", [["\udcff"], {"a": {"b": "\udcff"}}, {"\udcff": 1}])
def test_invalid_utf8_is_found_at_any_depth(place: object) -> None:
    with pytest.raises(BadRequest, match=r"^json_schema: .*not valid UTF-8") as refused:
        parse_message({**LEAST, "json_schema": {"x": place}})
    assert refused.value.id == "r1"


def test_a_request_for_another_type_needs_no_text() -> None:
    request, _ = parse_message({"id": "r1", "model_type": "stt", "audio": b"RIFF"})
    assert isinstance(request, Request)
    assert request.audio == b"RIFF"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "ranker"}, "text: missing"),
        ({"model_type": "embedding"}, "text: missing; give `text` (a string) or `documents`"),
        ({"model_type": "embedding", "text": "a", "documents": ["b"]}, "documents: give either"),
        ({"model_type": "rerank", "documents": ["b"]}, "text: missing; it is the query"),
        ({"model_type": "rerank", "text": "a"}, "documents: missing"),
    ],
)
def test_each_type_needs_its_own_fields(fields: Map, words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_message({"id": "r1"} | fields)
    assert refused.value.message.startswith(words)
    assert refused.value.id == "r1"


def test_an_operation_has_no_text() -> None:
    """`op` beside `text` is an unknown field of a request."""
    assert parse_message({**LEAST, "op": "ping"}) == (Request(id="r1", text="hello"), 1)


@pytest.mark.parametrize(("op", "field"), [("load", "model"), ("unload", "model_id")])
def test_load_and_unload_need_a_model(op: str, field: str) -> None:
    with pytest.raises(BadRequest, match=f"^{field}: missing"):
        parse_message({"op": op})


def test_cancel_needs_an_id() -> None:
    with pytest.raises(BadRequest, match=r"^id: missing"):
        parse_message({"op": "cancel"})


@pytest.mark.parametrize(
    "value",
    [
        {"id": "r1", "delta": 5},
        {"delta": "x"},
        {"id": 5, "status": "accepted"},
        {"id": "r1", "tool_id": "__chat__"},
        {"id": "r1", "error": "internal", "code": "500"},
    ],
)
def test_a_reply_that_is_none_of_them(value: Map) -> None:
    with pytest.raises(BadRequest):
        parse_reply(value)


ANY_DIFFERENCE: Map = {
    "text": "other", "messages": [ChatMessage("user", "x")], "ranked": True, "priority": "low", "model_id": "m",
    "session_id": "s", "model_type": "stt", "max_tokens": 3, "temperature": 0.0, "top_p": 0.5, "top_k": 1,
    "min_p": 0.5, "repeat_penalty": 2.0, "seed": 1, "stop": ["x"], "grammar": "g", "json_schema": {}, "tools": [],
    "tool_choice": "auto", "reset_cache": True, "overflow": "drop_oldest", "client": "c", "audio": b"",
    "audio_path": "p", "documents": [], "voice": "v", "language": "de", "words": True,
    "speed": 2.0, "id": "other",
}  # fmt: skip


def test_same_work_leaves_out_where_and_how_the_answer_goes() -> None:
    one = Request(id="r1", text="hello")
    elsewhere = msgspec.structs.replace(one, callback="/tmp/x.sock", timeout_ms=5, stream=True)
    assert same_work(one, elsewhere)
    assert set(ANY_DIFFERENCE) == set(Request.__struct_fields__) - {"callback", "timeout_ms", "stream"}
    for field, value in ANY_DIFFERENCE.items():
        assert not same_work(one, msgspec.structs.replace(one, **{field: value})), field
