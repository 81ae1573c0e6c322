"""What the exit status of every command means: one table, shown by `granville help`."""

from __future__ import annotations

from dataclasses import dataclass

from granville.errors import (
    BadRequest,
    Cancelled,
    Conflict,
    ConnectionLost,
    DeadlineExceeded,
    DriverFailed,
    GranvilleError,
    Internal,
    NoDaemon,
    NoModel,
    PromptTooLong,
    QueueFull,
    ShuttingDown,
    TooLarge,
    UnknownJob,
    UnknownModel,
    Unsupported,
)

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130
"""128 + SIGINT, as a shell says it."""
BROKEN_PIPE = 141
"""128 + SIGPIPE."""


@dataclass(frozen=True, slots=True)
class Exit:
    status: int
    meaning: str
    errors: tuple[type[GranvilleError], ...] = ()


EXITS = (
    Exit(OK, "all is well"),
    Exit(FAILED, "the command could not do it; the line on stderr says why"),
    Exit(USAGE, "the command line is wrong"),
    Exit(3, "the request is", (BadRequest, Unsupported, PromptTooLong, TooLarge, Conflict)),
    Exit(4, "there is no such", (UnknownModel, UnknownJob)),
    Exit(5, "too late", (DeadlineExceeded,)),
    Exit(6, "the daemon has enough to do", (QueueFull,)),
    Exit(7, "the job was", (Cancelled,)),
    Exit(8, "the daemon failed", (DriverFailed, Internal)),
    Exit(9, "no daemon that can answer", (NoDaemon, ConnectionLost, ShuttingDown, NoModel)),
    Exit(INTERRUPTED, "Ctrl-C, or SIGTERM"),
)
_STATUS = {error: exit.status for exit in EXITS for error in exit.errors}
_BY_CODE = {error.code: exit.status for exit in EXITS for error in exit.errors if error.code < 500}
"""For classes that are not in the table, such as those of Crucible alone."""


def status_of(error: GranvilleError) -> int:
    """The exit status for an error: that of its class or of the nearest one above it in the tree."""
    of_class = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), None)
    return _BY_CODE.get(error.code, FAILED) if of_class is None else of_class


def status_of_name(error: str | None) -> int:
    """The exit status for an error by its name on the wire."""
    return next((exit.status for exit in EXITS for kind in exit.errors if kind.error == error), FAILED)
