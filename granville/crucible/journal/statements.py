"""The journal's tables, and what is written to them: each a statement that one transaction takes with others."""

from __future__ import annotations

from typing import Any

import msgspec

from granville.crucible.journal.records import RunRecord, StepRecord
from granville.crucible.running.events import RunState

APPLICATION_ID = 0x43527563
"""In the file's header: it is Crucible's."""
VERSION = 1
"""Of the tables."""
SCHEMA = """
CREATE TABLE run (
    id TEXT PRIMARY KEY, workflow TEXT NOT NULL, plan BLOB NOT NULL, digest BLOB NOT NULL, inputs BLOB NOT NULL,
    folder TEXT NOT NULL, allow TEXT NOT NULL, served INTEGER NOT NULL, state TEXT NOT NULL, outputs BLOB, error TEXT,
    error_code TEXT, step TEXT, created_at REAL NOT NULL, updated_at REAL NOT NULL, deadline_at REAL
);
CREATE INDEX run_by_time ON run (created_at);
CREATE TABLE step (
    number INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES run (id) ON DELETE CASCADE, key TEXT NOT NULL,
    kind TEXT NOT NULL, state TEXT NOT NULL, ended INTEGER NOT NULL, once INTEGER NOT NULL, attempts INTEGER NOT NULL,
    inputs BLOB, output BLOB, usage BLOB, error TEXT, started_at REAL NOT NULL, ended_at REAL, more BLOB,
    session TEXT, turn BLOB, UNIQUE (run, key)
);
"""
STEP_COLUMNS = (
    "key, kind, state, ended, once, attempts, inputs, output, usage, error, started_at, ended_at, more, session, turn"
)
RUN_COLUMNS = (
    "id, workflow, state, created_at, updated_at, deadline_at, error, error_code, step, folder, allow, served,"
    " (SELECT count(*) FROM step WHERE step.run = run.id AND step.ended)"
)

ENDED = ("finished", "failed", "cancelled")

Statement = tuple[str, tuple[Any, ...]]
_pack = msgspec.msgpack.encode
_unpack = msgspec.msgpack.decode


def new_run(record: RunRecord, plan: bytes, digest: bytes, inputs: bytes) -> Statement:
    """`plan` is the workflow as MessagePack, with those it calls in it: a file that is changed later changes no run."""
    return (
        "INSERT INTO run VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL, NULL, ?, ?, ?)",
        (
            record.id, record.workflow, plan, digest, inputs, record.folder, msgspec.json.encode(record.allow).decode(),
            record.served, record.state, record.created_at, record.updated_at, record.deadline_at,
        ),
    )  # fmt: skip


def set_run(
    id: str, state: RunState, at: float, *, outputs: bytes | None = None, error: str | None = None,
    error_code: str | None = None, step: str | None = None,
) -> Statement:  # fmt: skip
    """A finished or cancelled run stays what it is."""
    return (
        "UPDATE run SET state = ?, updated_at = ?, outputs = ?, error = ?, error_code = ?, step = ? "
        "WHERE id = ? AND state NOT IN ('finished', 'cancelled')",
        (state, at, outputs, error, error_code, step, id),
    )


def cancel_steps(run_id: str, at: float) -> Statement:
    """Of a run that has ended: what was cut off by that."""
    return "UPDATE step SET state = 'cancelled', ended_at = ? WHERE run = ? AND state = 'running'", (at, run_id)


def put_step(run_id: str, record: StepRecord, output: bytes | None = None) -> Statement:
    """A step as it stands now. `number` counts the writes, so ended steps lie in the order of their ends."""
    return (
        f"REPLACE INTO step (run, {STEP_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            run_id, record.key, record.kind, record.state, record.ended, record.once, record.attempts,
            _packed(record.inputs), output, _packed(record.usage), record.error, record.started_at, record.ended_at,
            _packed(record.more or None), record.session, _packed(record.turn),
        ),
    )  # fmt: skip


def read_step(row: tuple[Any, ...]) -> StepRecord:
    (key, kind, state, ended, once, attempts, inputs, output, usage, error, started_at, ended_at, more, session,
     turn) = row  # fmt: skip
    return StepRecord(
        key=key, kind=kind, state=state, ended=bool(ended), once=bool(once), attempts=attempts,
        inputs=_unpacked(inputs), output=_unpacked(output), usage=_unpacked(usage), error=error, started_at=started_at,
        ended_at=ended_at, more=_unpacked(more) or {}, session=session,
        turn=None if turn is None else _unpack(turn, type=list[tuple[str, str]]),
    )  # fmt: skip


def read_run(row: tuple[Any, ...]) -> RunRecord:
    """Of a row of RUN_COLUMNS."""
    (id, workflow, state, created_at, updated_at, deadline_at, error, error_code, step, folder, allow, served,
     done) = row  # fmt: skip
    return RunRecord(
        id=id, workflow=workflow, state=state, created_at=created_at, updated_at=updated_at, deadline_at=deadline_at,
        ended_at=updated_at if state in ENDED else None, error=error, error_code=error_code, step=step, folder=folder,
        allow=msgspec.json.decode(allow, type=tuple[str, ...]), served=bool(served), steps_done=done,
    )  # fmt: skip


def _packed(value: Any) -> bytes | None:
    return None if value is None else _pack(value)


def _unpacked(data: bytes | None) -> Any:
    return None if data is None else _unpack(data)
