"""Every message of the protocol as a typed value: `parse_message` for what a daemon receives, `parse_reply` for
what a client receives, `encode` for both. The field names are the wire's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from granville.errors import BadRequest, GranvilleError, from_wire
from granville.wire.forms import check_constraint, plain_choice, plain_tools
from granville.wire.inputs import check_inputs, require_one

MAX_ID_CHARS = 128
MAX_NAME_CHARS = 256
MAX_CALLBACK_CHARS = 4096
MAX_MESSAGES = 10_000
MAX_STOP_STRINGS = 16
MAX_DOCUMENTS = 1024
MAX_NESTING = 32
MAX_PATH_CHARS = 4096
MAX_WARM_MS = 600_000
MAX_SLOTS = 1024
"""Of a model that a control operation loads."""

Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Class = Literal["critical", "high", "normal", "low"]
ModelType = Literal["inference", "ranker", "stt", "tts", "embedding", "rerank"]
FinishReason = Literal["stop", "length", "tool"]


class ChatMessage(Struct, frozen=True):
    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str


class Request(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a client asks for. docs/protocol.md has a line on each field."""

    id: Id
    text: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    callback: Annotated[str, Meta(min_length=1, max_length=MAX_CALLBACK_CHARS)] | None = None
    ranked: bool = False
    priority: Class | None = None
    model_id: Name | None = None
    session_id: Name | None = None
    model_type: ModelType = "inference"
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 256
    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.8
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.95
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 40
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.05
    repeat_penalty: Annotated[float, Meta(gt=0, le=100)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**32 - 2)] | None = None
    stop: (
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=1024)]], Meta(max_length=MAX_STOP_STRINGS)] | None
    ) = None
    grammar: str | None = None
    json_schema: dict[str, Any] | str | bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    stream: bool = False
    timeout_ms: Annotated[int, Meta(ge=1, le=2**53)] | None = None
    reset_cache: bool = False
    overflow: Literal["error", "drop_oldest"] | None = None
    client: Name | None = None
    audio: bytes | None = None
    audio_path: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    documents: Annotated[list[str], Meta(min_length=1, max_length=MAX_DOCUMENTS)] | None = None
    language: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    words: bool = False
    voice: Name | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4)] | None = None


class Control(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An operation on the daemon itself; `rid` comes back in its reply."""

    op: Literal["models", "status", "cancel", "ping", "drain", "load", "unload", "warm"]
    rid: str | int | None = None
    id: Id | None = None
    model: Annotated[str, Meta(min_length=1, max_length=MAX_PATH_CHARS)] | None = None
    """load: `[type:][id:]path[?driver=NAME]`."""
    slots: Annotated[int, Meta(ge=1, le=MAX_SLOTS)] | None = None
    context_size: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    model_id: Name | None = None
    """unload, warm."""
    force: bool = False
    session_id: Name | None = None
    """warm: this and what follows, as a request will have them."""
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    model_type: ModelType = "inference"
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    priority: Class | None = None
    ttl_ms: Annotated[int, Meta(ge=1, le=MAX_WARM_MS)] | None = None
    wait: bool = False
    """warm: reply when it is done."""

    @property
    def prompt(self) -> Request:
        """warm: a request that begins like those to come. Raises BadRequest."""
        request = Request(
            id="warm", messages=self.messages, session_id=self.session_id, model_id=self.model_id,
            model_type=self.model_type, tools=self.tools, tool_choice=self.tool_choice, priority=self.priority,
        )  # fmt: skip
        return _with_plain_form(request)


class Ack(Struct, frozen=True):
    id: str
    status: Literal["accepted"] = "accepted"


class Usage(Struct, frozen=True):
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    dropped_turns: int | UnsetType = UNSET
    """With `overflow: drop_oldest`, when the oldest turns were left out: how many."""


class Result(Struct, frozen=True):
    """A job's one happy end. `text` is the chat answer in it."""

    id: str
    model_id: str
    tool_id: str
    tool_input_json: str
    priority: Class
    finish_reason: FinishReason = "stop"
    usage: Usage = Usage()
    output: Any = UNSET

    @property
    def text(self) -> str:
        if self.tool_id not in ("__chat__", "__transcript__"):
            return self.tool_input_json
        (text,) = msgspec.json.decode(self.tool_input_json, type=list[str])
        return text

    @property
    def call(self) -> tuple[str, dict[str, Any]] | None:
        """The tool that the model calls and its arguments; None for an answer in words."""
        if self.finish_reason != "tool":
            return None
        return self.tool_id, msgspec.json.decode(self.tool_input_json, type=dict[str, Any])

    @property
    def spoken(self) -> str:
        """What the model has said, text or call, as its session remembers it: whoever sends the conversation as
        `messages` gives this as the assistant's turn, and what was kept of it fits."""
        if self.tool_id == "__chat__":
            return self.text
        return f'{{"name": {msgspec.json.encode(self.tool_id).decode()}, "arguments": {self.tool_input_json}}}'


class Delta(Struct, frozen=True):
    id: str
    delta: str | bytes


class ErrorReply(Struct, frozen=True):
    """A job's other end, or the reply to what could not become a job."""

    id: str | None
    error: str
    code: int
    message: str = ""
    retry_after_ms: int | UnsetType = UNSET
    rid: str | int | UnsetType = UNSET

    def exception(self) -> GranvilleError:
        return from_wire(self.error, self.message, None if self.retry_after_ms is UNSET else self.retry_after_ms)


class ControlReply(Struct, frozen=True):
    """A control operation's answer: a map whose keys depend on the operation."""

    fields: dict[str, Any]


Reply = Ack | Result | Delta | ErrorReply | ControlReply

T = TypeVar("T")
REQUEST_FIELDS = frozenset(Request.__struct_fields__)
_encoder = msgspec.msgpack.Encoder()
_PATH = re.compile(r" - at (?P<key>`key` in )?`\$\.?(?P<path>.*)`$")
_EXPECTED = {
    "priority": "null or one of critical, high, normal, low",
    "model_type": "one of " + ", ".join(get_args(ModelType)),
    "overflow": "null, error or drop_oldest",
    "op": "models, status, cancel, ping, drain, load, unload or warm",
}


def encode(message: Request | Control | Ack | Result | Delta | ErrorReply | dict[str, Any]) -> bytes:
    return _encoder.encode(message)


def chat_json(text: str) -> str:
    """The `tool_input_json` of a chat answer: a JSON list of one string."""
    return msgspec.json.encode([text]).decode()


def error_reply(id: str | None, error: GranvilleError, rid: str | int | None = None) -> ErrorReply:
    return ErrorReply(
        id,
        error.error,
        error.code,
        error.message if error.message.isascii() else error.message.encode(errors="replace").decode(),
        UNSET if error.retry_after_ms is None else error.retry_after_ms,
        UNSET if rid is None else rid,
    )


def same_work(one: Request, other: Request) -> bool:
    """Whether two requests ask for the same: all but where the answer goes, by when, and in how many pieces."""
    return _work(one) == _work(other)


def _work(request: Request) -> Request:
    return msgspec.structs.replace(request, callback=None, timeout_ms=None, stream=False)


def parse_message(value: object) -> tuple[Request | Control, int]:
    """A received MessagePack value as a request or a control operation, with the number of unknown fields in it.

    Raises BadRequest, which names the field and carries the message's `id` and `rid` where they could be read.
    """

    def parse(value: dict[str, Any]) -> tuple[Request | Control, int]:
        if "op" in value and "text" not in value:
            return _control(value), 0
        return _request(value), len(value.keys() - REQUEST_FIELDS)

    return parse_map(value, parse)


def parse_map(value: object, parse: Callable[[dict[str, Any]], T]) -> T:
    """A received value, which has to be a map of text that can be read, made a message by `parse`.

    Raises BadRequest, which carries the message's `id` and `rid` where they could be read.
    """
    if not isinstance(value, dict):
        raise BadRequest(f"a message must be a map, got {_kind(value)}")
    id, rid = value.get("id"), value.get("rid")
    readable_id = id if isinstance(id, str) and 1 <= len(id) <= MAX_ID_CHARS and _is_unicode(id) else None
    try:
        for key, field in value.items():
            if not isinstance(key, str):
                raise BadRequest(f"a message's keys must be strings, got {_kind(key)}")
            if not _is_unicode(key):
                raise BadRequest("a key is not valid UTF-8")
            _check_strings(field, key, 1)
        return parse(value)
    except BadRequest as error:
        error.id = readable_id
        if type(rid) is int or (isinstance(rid, str) and _is_unicode(rid)):
            error.rid = rid
        raise


def parse_reply(value: object) -> Reply:
    """A value received from a daemon, told apart by its keys. Raises BadRequest for what is none of them."""
    if not isinstance(value, dict):
        raise BadRequest(f"a reply must be a map, got {_kind(value)}")
    if "error" in value and "code" in value:
        return convert(value, ErrorReply)
    if "delta" in value:
        return _delta(value)
    if "tool_id" in value:
        return convert(value, Result)
    if value.get("status") == "accepted":
        return convert(value, Ack)
    return ControlReply(value)


def _request(value: dict[str, Any]) -> Request:
    request = _with_plain_form(convert(_with_lower_case(value), Request))
    if request.overflow == "error":  # as without it
        request = msgspec.structs.replace(request, overflow=None)
    check_inputs(request)
    return request


def _with_lower_case(value: dict[str, Any]) -> dict[str, Any]:
    priority = value.get("priority")
    return value | {"priority": priority.lower()} if isinstance(priority, str) else value


def _with_plain_form(request: Request) -> Request:
    """`tools` and `tool_choice` in the one way that they are written further inside."""
    if not any(
        field is not None for field in (request.grammar, request.json_schema, request.tools, request.tool_choice)
    ):
        return request
    tools = plain_tools(request.tools)
    check_constraint(request.grammar, request.json_schema, tools)
    return msgspec.structs.replace(request, tools=tools, tool_choice=plain_choice(request.tool_choice, tools))


def _control(value: dict[str, Any]) -> Control:
    control = convert(_with_lower_case(value), Control)
    if control.op == "cancel" and control.id is None:
        raise BadRequest("id: missing; `cancel` needs the id of a job")
    if control.op == "load" and control.model is None:
        raise BadRequest("model: missing; `load` needs a model, as [type:][id:]path")
    if control.op == "unload" and control.model_id is None:
        raise BadRequest("model_id: missing; `unload` needs the id of a model, as `models` lists it")
    if control.op == "warm":
        require_one(
            control, "session_id", "messages", "`warm` needs a session or the messages that a prompt begins with"
        )
        if control.ttl_ms is None:
            raise BadRequest(f"ttl_ms: missing; say for how long to keep it warm, 1 to {MAX_WARM_MS} milliseconds")
        _ = control.prompt  # what is wrong with its tools
    return control


def _delta(value: dict[str, Any]) -> Delta:
    # msgspec tells no `str | bytes` apart.
    id, delta = value.get("id"), value["delta"]
    if not isinstance(id, str) or not isinstance(delta, str | bytes):
        raise BadRequest("delta: expected text or bytes, beside the `id` of its job")
    return Delta(id, delta)


def convert(value: dict[str, Any], type: type[T], expected: Mapping[str, str] = _EXPECTED) -> T:
    """Raises BadRequest, which names the field; `expected` says what could stand in one of a few words."""
    try:
        # bytes as they are: msgspec would take a string for base64.
        return msgspec.convert(value, type, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise BadRequest(_explain(str(error), value, expected)) from None


def _explain(text: str, value: dict[str, Any], expected: Mapping[str, str]) -> str:
    """msgspec's sentence with the field in front: ``text: expected `str`, got `int` ``."""
    missing = re.fullmatch(r"Object missing required field `(\w+)`", text)
    if missing:
        return f"{missing[1]}: missing"
    match = _PATH.search(text)
    if match is None:
        return text
    path, sentence = match["path"], text[: match.start()]
    if sentence.startswith("Invalid enum value") and path in expected:
        sentence = f"expected {expected[path]}, got {str(value[path])[:40]!r}"
    of_key = "a key of the map: " if match["key"] else ""
    return f"{path}: {of_key}{sentence[0].lower()}{sentence[1:]}"


def _check_strings(value: object, path: str, depth: int) -> None:
    """Framing keeps bytes that are not UTF-8 as surrogates, so that one bad string costs one request."""
    if isinstance(value, str):
        if not _is_unicode(value):
            raise BadRequest(f"{path}: not valid UTF-8")
    elif isinstance(value, dict | list):
        if depth >= MAX_NESTING:
            raise BadRequest(f"{path.split('.')[0]}: nested deeper than {MAX_NESTING} levels")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str) and not _is_unicode(key):
                raise BadRequest(f"{path}: a key is not valid UTF-8")
            _check_strings(item, path, depth + 1)


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    names = {dict: "a map", list: "an array", str: "a string", bytes: "bytes", bool: "a boolean", int: "an integer",
             float: "a float", type(None): "nil"}  # fmt: skip
    return names.get(type(value), "an extension value")
