"""The exception tree. Every class that a client can meet carries its wire name and code (docs/protocol.md)."""

from __future__ import annotations

from typing import ClassVar


class GranvilleError(Exception):
    """The root. `error` and `code` are what the client reads; the message says what would be right."""

    error: ClassVar[str] = "internal"
    code: ClassVar[int] = 500

    def __init__(self, message: str, *, retry_after_ms: int | None = None) -> None:
        # It may quote anything: half a character would be refused by the wire, by the journal and by a terminal.
        message = message.encode(errors="replace").decode()
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms


class BadRequest(GranvilleError):
    """A field is missing or wrong. `id` and `rid` are the message's, when they could be read."""

    error = "bad_request"
    code = 400

    def __init__(self, message: str, *, id: str | None = None) -> None:
        super().__init__(message)
        self.id = id
        self.rid: str | int | None = None


class FramingLost(BadRequest):
    """The stream is no longer MessagePack: nothing after this point can be read."""


class UnknownModel(GranvilleError):
    error = "unknown_model"
    code = 404


class UnknownJob(GranvilleError):
    error = "unknown_job"
    code = 404


class DeadlineExceeded(GranvilleError):
    error = "deadline_exceeded"
    code = 408


class Conflict(GranvilleError):
    error = "conflict"
    code = 409


class TooLarge(GranvilleError):
    """The message is over `--max-request-bytes`; like lost framing, the stream is read no further."""

    error = "too_large"
    code = 413


class PromptTooLong(GranvilleError):
    error = "prompt_too_long"
    code = 413


class Unsupported(GranvilleError):
    error = "unsupported"
    code = 422


class QueueFull(GranvilleError):
    error = "queue_full"
    code = 429


class Cancelled(GranvilleError):
    error = "cancelled"
    code = 499


class Internal(GranvilleError):
    error = "internal"
    code = 500


class DriverFailed(GranvilleError):
    error = "driver_failed"
    code = 502


class ShuttingDown(GranvilleError):
    error = "shutting_down"
    code = 503


class NoModel(GranvilleError):
    error = "no_model"
    code = 503


class NoDaemon(GranvilleError):
    """The client's own: nothing listens at the address."""

    error = "no_daemon"
    code = 503


class ConnectionLost(GranvilleError):
    """The client's own: the connection ended before the answer; the daemon may have the request."""

    error = "connection_lost"
    code = 503


class StartupError(GranvilleError):
    """The daemon or a command cannot start: one line for the person at the terminal, and a non-zero exit."""


class DoesNotFit(StartupError):
    """A model is larger than what is left of `--memory`; the message has the figures and what would fit."""


WIRE_ERRORS: dict[str, type[GranvilleError]] = {
    cls.error: cls
    for cls in (
        BadRequest, UnknownModel, UnknownJob, DeadlineExceeded, Conflict, TooLarge, PromptTooLong, Unsupported,
        QueueFull, Cancelled, Internal, DriverFailed, ShuttingDown, NoModel,
    )
}  # fmt: skip


def from_wire(error: str, message: str, retry_after_ms: int | None = None) -> GranvilleError:
    """The exception a wire error stands for; a name this version does not know becomes a plain GranvilleError."""
    made = WIRE_ERRORS.get(error, GranvilleError)(message)
    made.retry_after_ms = retry_after_ms
    return made
