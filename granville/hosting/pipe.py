"""What a driver's process and the kernel say to each other: frames of MessagePack over a socket pair.

A frame is its length (4 bytes, little endian) and one message. Both sides are of one build, so messages have no
version; all the same nothing is believed that comes from the driver's process: it may have written over its own memory.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from granville.hosting.interface import (
    Audio,
    Capabilities,
    Embed,
    Event,
    Failed,
    Finished,
    Generate,
    ModelInfo,
    ModelSpec,
    Output,
    Parked,
    Rerank,
    Score,
    Speak,
    Task,
    Token,
    Transcribe,
    Usage,
    Warm,
)

MAX_FRAME_BYTES = 256 << 20
"""Of the largest message: vectors for all texts that a request can hold, or an answer's text."""
READ_BYTES = 1 << 18
_LENGTH = struct.Struct("<I")
T = TypeVar("T")


class PipeError(Exception):
    """What came is no message of this protocol, or what was to be sent fits into none; says how."""


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What both sides send. The kernel's commands are carried out in their order."""


class Open(Message, frozen=True):
    """The kernel's first word: which driver it is to be."""

    driver: str
    log_level: int


class Load(Message, frozen=True):
    spec: ModelSpec


class Submit(Message, frozen=True):
    kind: str
    """The task's class."""
    task: msgspec.Raw


class Cancel(Message, frozen=True):
    id: str


class Park(Message, frozen=True):
    id: str


class Resume(Message, frozen=True):
    id: str


class Limit(Message, frozen=True):
    kv_ram_bytes: int


class Pace(Message, frozen=True):
    """`prefill_ms` of every step from now on."""

    prefill_ms: float | None


class Close(Message, frozen=True):
    pass


class Hello(Message, frozen=True):
    """The driver has been found, and this is what it says of itself; None where it does not. The first two that may be
    None are those of a driver whose models can be tuned."""

    name: str
    version: str
    backend: str | None = None
    tuning_module: str | None = None
    config: dict[str, Any] | None = None
    config_schema: dict[str, Any] | None = None


class Loaded(Message, frozen=True):
    slots: int
    capabilities: Capabilities
    info: ModelInfo


class Refused(Message, frozen=True):
    """The process's last word: there is no such driver, it does not load the model, or the model is lost."""

    message: str


class Batch(Message, frozen=True):
    """What commands and a step brought."""

    events: list[tuple[str, msgspec.Raw]]
    """Each with the name of its class."""
    done: int
    """How many commands of the kernel have been carried out so far."""
    stats: dict[str, int | float | str] | None = None
    """The model's figures, when they are others than the last that were sent."""


ToDriver = Open | Load | Submit | Cancel | Park | Resume | Limit | Pace | Close
ToKernel = Hello | Loaded | Refused | Batch


class _Output(msgspec.Struct, frozen=True):
    """Output, whose two kinds of list msgspec cannot tell apart by their type."""

    id: str
    value: list[float | list[float]] | dict[str, Any]
    usage: Usage


def _to_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return os.fsencode(value)
    raise NotImplementedError(f"a {type(value).__name__} cannot be sent")


def _from_plain(kind: type, value: Any) -> Any:
    if kind is object:
        return value
    if kind is Path and isinstance(value, bytes):
        return Path(os.fsdecode(value))
    raise NotImplementedError(f"a {kind.__name__} cannot be received")


_encode = msgspec.msgpack.Encoder(enc_hook=_to_plain).encode
_to_driver = msgspec.msgpack.Decoder(ToDriver, dec_hook=_from_plain)
_to_kernel = msgspec.msgpack.Decoder(ToKernel)
_events: Mapping[str, msgspec.msgpack.Decoder[Any]] = {
    kind.__name__: msgspec.msgpack.Decoder(_Output if kind is Output else kind)
    for kind in (Token, Audio, Finished, Output, Failed, Parked)
}
_tasks: Mapping[str, msgspec.msgpack.Decoder[Any]] = {
    kind.__name__: msgspec.msgpack.Decoder(kind, dec_hook=_from_plain)
    for kind in (Generate, Score, Warm, Embed, Rerank, Transcribe, Speak)
}


def frame(message: Message) -> bytes:
    """Raises PipeError for what cannot be sent."""
    data = _packed(message)
    if len(data) > MAX_FRAME_BYTES:
        raise PipeError(f"a message of {len(data)} bytes; {MAX_FRAME_BYTES} is the most")
    return _LENGTH.pack(len(data)) + data


def raw(value: Task | Event) -> msgspec.Raw:
    """A part of a message. Raises PipeError: text that is not Unicode, an object of a class that cannot be sent."""
    return msgspec.Raw(_packed(value))


def submit(task: Task) -> Submit:
    """Raises PipeError."""
    return Submit(type(task).__name__, raw(task))


def task_of(message: Submit) -> Task:
    return cast(Task, _tasks[message.kind].decode(message.task))


def events_of(batch: Batch) -> list[Event]:
    """Raises PipeError."""
    return [_decoded(_event, pair) for pair in batch.events]


def to_driver(data: bytes) -> ToDriver:
    """Raises PipeError."""
    message: ToDriver = _decoded(_to_driver.decode, data)
    return message


def to_kernel(data: bytes) -> ToKernel:
    """Raises PipeError."""
    message: ToKernel = _decoded(_to_kernel.decode, data)
    return message


class Frames:
    """Bytes in, frames out."""

    def __init__(self) -> None:
        self.whole: deque[bytes] = deque()
        """Those that have come and were not taken yet."""
        self._data = bytearray()

    def feed(self, data: bytes | memoryview) -> None:
        """Raises PipeError for a frame that is too long, before it has come."""
        self._data += data
        start = 0
        while len(self._data) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._data, start)
            if size > MAX_FRAME_BYTES:
                raise PipeError(f"a message of {size} bytes; {MAX_FRAME_BYTES} is the most")
            end = start + _LENGTH.size + size
            if len(self._data) < end:
                break
            self.whole.append(bytes(memoryview(self._data)[start + _LENGTH.size : end]))
            start = end
        if start:
            del self._data[:start]


def _event(pair: Sequence[Any]) -> Event:
    name, data = pair
    event: Any = _events[name].decode(data)
    return Output(event.id, event.value, event.usage) if name == "Output" else event


def _packed(value: object) -> bytes:
    try:
        return _encode(value)
    except (TypeError, ValueError, OverflowError, NotImplementedError, RecursionError) as error:
        raise PipeError(str(error)) from None


def _decoded(decode: Any, data: Any) -> Any:
    try:
        return decode(data)
    except (msgspec.MsgspecError, KeyError, ValueError, RecursionError) as error:
        raise PipeError(f"what came is no message: {type(error).__name__}: {error}") from None
