"""What clients and `crucible serve` say to each other: maps as in Granville's protocol, with `op` in what is asked.

run, resume and events are followed: an ACK, events if they are wanted, and exactly one terminal message, the outputs or
an error. The others are answered at once. docs/crucible-operations.md has a line on each field.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta, Struct

from granville.crucible.journal.records import RunRecord, UnknownRun
from granville.crucible.running.events import DeltaEvent, Event, RunEvent, RunState, StepEvent
from granville.crucible.running.failures import BudgetExceeded, Interrupted
from granville.crucible.workflow.problems import WorkflowError
from granville.errors import WIRE_ERRORS, BadRequest, Cancelled, GranvilleError
from granville.wire.messages import (
    MAX_CALLBACK_CHARS,
    MAX_PATH_CHARS,
    ErrorReply,
    Id,
    convert,
    error_reply,
    parse_map,
)

MAX_LISTED_RUNS = 1000
MAX_KEY_CHARS = 4096

Key = Annotated[str, Meta(min_length=1, max_length=MAX_KEY_CHARS)]
Callback = Annotated[str, Meta(min_length=1, max_length=MAX_CALLBACK_CHARS)]


class RunFailed(GranvilleError):
    """A run has ended with a step's failure. `cause` is the name of that error, `step` where it happened."""

    error = "run_failed"
    code = 502

    def __init__(self, message: str, cause: str = "run_failed", step: str | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.step = step


class Asked(Struct, kw_only=True, frozen=True, omit_defaults=True):
    """`rid` comes back in the reply to this."""

    op: ClassVar[str]
    rid: str | int | None = None
    id: Id | None = None
    """Of a run."""


class Followed(Asked, kw_only=True, frozen=True, omit_defaults=True):
    callback: Callback | None = None
    """Where what follows the ACK goes; None: this connection."""
    stream: bool = False
    """Send events before the end."""
    detached: bool = False
    """With callback None: the run goes on when this connection has gone. Otherwise it is cancelled then."""


class Run(Followed, kw_only=True, frozen=True, omit_defaults=True):
    """Start a run. The same id, workflow and inputs again is the same run, and is followed from its beginning."""

    op = "run"
    workflow: dict[str, Any] | str | None = None
    """A map, or text in YAML."""
    path: Annotated[str, Meta(min_length=1, max_length=MAX_PATH_CHARS)] | None = None
    """A workflow's file, absolute; on a Unix socket only."""
    inputs: dict[str, Any] = {}


class Resume(Followed, kw_only=True, frozen=True, omit_defaults=True):
    """Go on with a run that was interrupted or has failed."""

    op = "resume"
    retry: Key | None = None
    """A step whose call was cut short: make it again."""


class Events(Asked, kw_only=True, frozen=True, omit_defaults=True):
    """Follow a run from its beginning, whoever has started it. It goes on when this connection has gone."""

    op = "events"


class Runs(Asked, kw_only=True, frozen=True, omit_defaults=True):
    """List runs, the latest first."""

    op = "runs"
    limit: Annotated[int, Meta(ge=1, le=MAX_LISTED_RUNS)] = 50
    state: RunState | None = None


class Show(Asked, kw_only=True, frozen=True, omit_defaults=True):
    """A run and its steps."""

    op = "show"
    full: bool = False
    """Values as they are, audio too; else a short look at each."""


class Cancel(Asked, kw_only=True, frozen=True, omit_defaults=True):
    op = "cancel"


class Ping(Asked, kw_only=True, frozen=True, omit_defaults=True):
    op = "ping"


class Status(Asked, kw_only=True, frozen=True, omit_defaults=True):
    op = "status"


Message = Run | Resume | Events | Runs | Show | Cancel | Ping | Status
OPERATIONS: dict[str, type[Message]] = {
    kind.op: kind for kind in (Run, Resume, Events, Runs, Show, Cancel, Ping, Status)
}
CODES = {name: kind.code for name, kind in WIRE_ERRORS.items()} | {kind.error: kind.code for kind in (BudgetExceeded,)}
_EXPECTED = {"state": "one of running, finished, failed, cancelled, interrupted"}


def parse_message(value: object) -> tuple[Message, int]:
    """A received value as an operation, with the number of unknown fields in it. Raises BadRequest, as
    granville.wire.messages.parse_message does."""
    return parse_map(value, _parse)


def _parse(value: dict[str, Any]) -> tuple[Message, int]:
    op = value.get("op")
    kind = OPERATIONS.get(op) if isinstance(op, str) else None
    if kind is None:
        got = "it is missing" if op is None else f"got {str(op)[:40]!r}"
        raise BadRequest(f"op: expected one of {', '.join(OPERATIONS)}; {got}")
    message = convert(value, kind, _EXPECTED)
    if isinstance(message, Run):
        if (message.workflow is None) == (message.path is None):
            raise BadRequest("workflow: give either `workflow`, a map or YAML in a string, or `path`, a file's")
    elif isinstance(message, Resume | Events | Show | Cancel) and message.id is None:
        raise BadRequest(f"id: missing; `{op}` needs the id of a run")
    return message, len(value.keys() - {"op", *kind.__struct_fields__})


def asked(message: Asked) -> dict[str, Any]:
    """An operation as it is sent."""
    return {"op": message.op, **msgspec.to_builtins(message, builtin_types=(bytes,))}


def event_map(event: Event) -> dict[str, Any]:
    """An event as it is sent: `id` is the run's."""
    fields: dict[str, Any] = msgspec.to_builtins(event, builtin_types=(bytes,))
    return {"id": fields.pop("run_id"), **fields}


def read_event(fields: dict[str, Any]) -> Event:
    """The other way. Raises BadRequest."""
    fields = dict(fields)
    fields["run_id"] = fields.pop("id", None)
    kinds: dict[Any, type[Event]] = {"step": StepEvent, "delta": DeltaEvent, "run": RunEvent}
    kind = kinds.get(fields.get("event"))
    if kind is None:
        raise BadRequest(f"event: expected one of {', '.join(kinds)}")
    event: Event = convert(fields, kind)
    return event


def end_map(record: RunRecord) -> dict[str, Any]:
    """The terminal message of a run that has ended or stopped: its outputs, or an error."""
    if record.state == "finished":
        return {"id": record.id, "workflow": record.workflow, "state": "finished", "outputs": record.outputs or {}}
    error = end_error(record)
    fields: dict[str, Any] = msgspec.to_builtins(error_reply(record.id, error))
    if isinstance(error, RunFailed):
        fields["error"], fields["code"] = error.cause, CODES.get(error.cause, error.code)
    return {**fields, "state": record.state, **({} if record.step is None else {"step": record.step})}


def end_error(record: RunRecord) -> GranvilleError:
    """What a run that has not finished is to whoever waits for it."""
    if record.state == "cancelled":
        return Cancelled(record.error or "the run was cancelled")
    if record.state == "failed":
        return RunFailed(record.error or "the run has failed", record.error_code or RunFailed.error, record.step)
    return Interrupted(record.error or "the run has stopped before its end, and can be resumed")


def refusal(id: str | None, error: GranvilleError, rid: str | int | None = None) -> dict[str, Any]:
    """The reply to what could not be done; of a wrong workflow with all that is wrong with it."""
    fields: dict[str, Any] = msgspec.to_builtins(error_reply(id, error, rid))
    return {**fields, **more_of(error)}


def more_of(error: GranvilleError) -> dict[str, Any]:
    """What the reply to an error says beyond its message."""
    return {"problems": [str(one) for one in error.problems]} if isinstance(error, WorkflowError) else {}


def read_error(fields: dict[str, Any]) -> GranvilleError:
    """An error message of the daemon's as an exception. Raises BadRequest for what is none."""
    reply = convert(fields, ErrorReply)
    if fields.get("state") == "failed":
        return RunFailed(reply.message, reply.error, fields.get("step"))
    ours = next((kind for kind in (Interrupted, UnknownRun) if kind.error == reply.error), None)
    return reply.exception() if ours is None else ours(reply.message)
