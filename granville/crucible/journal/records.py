"""What the journal tells of a run and of a step, and how a value becomes bytes."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from granville.crucible.running.events import RunState, StepKind, StepState
from granville.errors import GranvilleError

MAX_VALUE_BYTES = 64 << 20
"""Of one step's value, as MessagePack."""
_encoder = msgspec.msgpack.Encoder()


class BadOutput(GranvilleError):
    """A step's value is not what the step promises, or nothing that can be kept."""

    error = "bad_output"
    code = 502


class UnknownRun(GranvilleError):
    """No run of that id is in the journal."""

    error = "unknown_run"
    code = 404


class RunRecord(Struct, frozen=True, kw_only=True):
    id: str
    workflow: str
    """Its name."""
    state: RunState
    created_at: float
    """Seconds since 1970, like all times here."""
    updated_at: float
    deadline_at: float | None = None
    ended_at: float | None = None
    steps_done: int = 0
    inputs: dict[str, Any] | None = None
    """None in a list of runs, like `outputs`: they may be large."""
    outputs: dict[str, Any] | None = None
    error: str | None = None
    error_code: str | None = None
    """The error's name on the wire, such as `budget_exceeded`."""
    step: str | None = None
    """Which step's failure, or cut-off call, the error tells of."""
    folder: str = ""
    allow: tuple[str, ...] = ()
    served: bool = False
    """Started by a daemon, which takes it up again by itself."""
    pid: int | None = None
    """Of the process that executes it."""


class StepRecord(Struct, frozen=True, kw_only=True):
    key: str
    kind: StepKind
    state: StepState
    ended: bool = False
    """The run has gone on behind it: it is not run again. A step that failed the run has not."""
    once: bool = False
    """A call that is not made again by itself."""
    attempts: int = 1
    inputs: Any = None
    """What was sent, long parts shortened."""
    output: Any = None
    usage: dict[str, int] | None = None
    """Of all attempts."""
    error: str | None = None
    started_at: float = 0.0
    ended_at: float | None = None
    more: dict[str, Any] = {}
    """`text`, `segments`, `language`, `exhausted`, where they apply."""
    session: str | None = None
    turn: list[tuple[str, str]] | None = None
    """What it has added to its session: (role, content)."""


def packed(value: Any, what: str) -> bytes:
    """A value as MessagePack. Raises BadOutput, which begins with `what` it is."""
    try:
        data = _encoder.encode(value)
    except (TypeError, OverflowError, ValueError, RecursionError) as error:
        raise BadOutput(f"{what} is no value that can be kept: {error}; JSON's types and bytes can") from None
    if len(data) > MAX_VALUE_BYTES:
        raise BadOutput(f"{what} has {len(data)} bytes, and {MAX_VALUE_BYTES} are the most")
    return data


def plain(value: Any, what: str) -> tuple[Any, bytes]:
    """A value as it will be read back after a crash, with its bytes: a tuple is a list from here on."""
    data = packed(value, what)
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return value, data
    try:
        return msgspec.msgpack.decode(data), data
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadOutput(f"{what} is no value that can be kept: {error}") from None


def shortened(value: Any, limit: int) -> Any:
    """A look at a value: texts are cut at `limit` characters, sound is told by its size."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if isinstance(value, str):
        return value if len(value) <= limit else f"{value[:limit]}… ({len(value)} characters)"
    if isinstance(value, dict):
        shown = {}
        for key, item in value.items():
            if limit <= 0:
                shown["…"] = f"{len(value)} keys"
                break
            shown[str(key)] = shortened(item, limit)
            limit -= len(str(key)) + _weight(shown[str(key)])
        return shown
    if isinstance(value, list | tuple):
        items: list[Any] = []
        for item in value:
            if limit <= 0:
                items.append(f"… ({len(value)} items)")
                break
            items.append(shortened(item, limit))
            limit -= _weight(items[-1])
        return items
    return value


def _weight(shown: Any) -> int:
    if isinstance(shown, str):
        return len(shown)
    if isinstance(shown, dict):
        return sum(len(key) + _weight(item) for key, item in shown.items()) + 2
    return sum(map(_weight, shown)) + 2 if isinstance(shown, list) else 8
