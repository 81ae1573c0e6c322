"""The journal of runs: one SQLite file, a step at a time.

A commit is on the disk when it returns (write-ahead log, synchronous=FULL). Calls are synchronous and may come from
any thread; `writer.Writer` makes one commit of what many steps write at the same time.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from granville.config import home
from granville.crucible.journal.locks import RunLocks
from granville.crucible.journal.records import RunRecord, StepRecord, UnknownRun
from granville.crucible.journal.statements import (
    APPLICATION_ID,
    ENDED,
    RUN_COLUMNS,
    SCHEMA,
    STEP_COLUMNS,
    VERSION,
    Statement,
    read_run,
    read_step,
)
from granville.crucible.running.events import RunState
from granville.crucible.workflow.model import Workflow
from granville.errors import StartupError

FILE = "runs.db"
BUSY_S = 10.0
"""How long a write waits for another process's."""
MAX_CHECKED_BYTES = 64 << 20
"""A larger file is not read through at the start."""
PAGE_BYTES = 4096
DEFAULT_KEEP_RUNS = 1000
"""Ended runs that are kept; one that can be resumed by itself is never thrown away."""
DEFAULT_KEEP_BYTES = 4 << 30
"""Of the file; above it the oldest ended runs go."""
FULL_FACTOR = 2
"""At so many times that, runs that go on can write no more."""
DEFAULT_KEEP_S = 30 * 86_400.0
MAX_STEPS_READ = 1_000_000


class Journal:
    def __init__(self, database: sqlite3.Connection, path: Path, locks: RunLocks, keep_bytes: int) -> None:
        self.path = path
        self.locks = locks
        self._database = database
        self._one_at_a_time = threading.Lock()
        self._keep_bytes = keep_bytes

    @classmethod
    def open(cls, path: Path | None = None, *, keep_bytes: int = DEFAULT_KEEP_BYTES) -> Journal:
        """The journal at a path, by default `crucible/runs.db` in Granville's home; made if it is missing. Raises
        StartupError for one that is damaged, newer, or no journal."""
        path = home() / "crucible" / FILE if path is None else path
        locks = path.with_name(f"{path.name}-locks")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            locks.mkdir(mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # its log files get the same mode
        except OSError as error:
            raise StartupError(f"{path}: the journal of runs cannot be opened: {error.strerror or error}") from error
        return cls(_open(path, keep_bytes), path, RunLocks(locks), keep_bytes)

    def close(self) -> None:
        with self._one_at_a_time:
            self._database.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def apply(self, statements: Sequence[Statement]) -> None:
        """All of them or none, on the disk when this returns. Raises sqlite3.Error."""
        with self._writing() as database:
            for sql, parameters in statements:
                database.execute(sql, parameters)

    def runs(self, limit: int = 50, state: RunState | None = None) -> list[RunRecord]:
        """The newest first. A run that nobody executes is `interrupted`, though it was not told so before its process
        ended."""
        stored = "running" if state == "interrupted" else state
        sql = (
            f"SELECT {RUN_COLUMNS} FROM run WHERE ?1 IS NULL OR state = ?1 OR state = ?2 "
            "ORDER BY created_at DESC, rowid DESC"
        )
        found: list[RunRecord] = []
        for row in self._query(sql, (stored, state)):
            record = self._as_it_stands(read_run(row))
            if state in (None, record.state):
                found.append(record)
                if len(found) == limit:
                    break
        return found

    def run(self, id: str) -> RunRecord:
        """Raises UnknownRun."""
        rows = self._query(f"SELECT {RUN_COLUMNS}, inputs, outputs FROM run WHERE id = ?", (id,))
        if not rows:
            raise UnknownRun(f"{id}: no such run; `crucible runs list` shows those that are kept")
        *plain, inputs, outputs = rows[0]
        record = msgspec.structs.replace(
            read_run(tuple(plain)),
            inputs=msgspec.msgpack.decode(inputs),
            outputs=None if outputs is None else msgspec.msgpack.decode(outputs),
        )
        return self._as_it_stands(record)

    def workflow(self, id: str) -> Workflow:
        """What the run runs. Raises UnknownRun."""
        rows = self._query("SELECT plan FROM run WHERE id = ?", (id,))
        if not rows:
            raise UnknownRun(f"{id}: no such run")
        return msgspec.msgpack.decode(rows[0][0], type=Workflow)

    def digest(self, id: str) -> bytes | None:
        """What tells the run's workflow and inputs from others; None when there is no such run."""
        rows = self._query("SELECT digest FROM run WHERE id = ?", (id,))
        return bytes(rows[0][0]) if rows else None

    def steps(self, id: str) -> list[StepRecord]:
        """Of a run, in the order in which they ended; what runs comes in the order in which it was started."""
        sql = f"SELECT {STEP_COLUMNS} FROM step WHERE run = ? ORDER BY number LIMIT {MAX_STEPS_READ}"
        return [read_step(row) for row in self._query(sql, (id,))]

    def step(self, id: str, key: str) -> StepRecord | None:
        rows = self._query(f"SELECT {STEP_COLUMNS} FROM step WHERE run = ? AND key = ?", (id, key))
        return read_step(rows[0]) if rows else None

    def unfinished(self) -> list[str]:
        """Ids of the runs that a daemon has started and that have not ended, the oldest first."""
        sql = "SELECT id FROM run WHERE served AND state = 'running' ORDER BY created_at"
        return [id for (id,) in self._query(sql, ())]

    def prune(self, now: float, *, keep_runs: int = DEFAULT_KEEP_RUNS, keep_s: float = DEFAULT_KEEP_S) -> int:
        """Forget ended runs that are too old, too many, or fill the file. How many went."""
        with self._writing() as database:
            gone = database.execute(
                f"DELETE FROM run WHERE state IN {ENDED!r} AND (updated_at < ? OR id IN (SELECT id FROM run "
                f"WHERE state IN {ENDED!r} ORDER BY updated_at DESC LIMIT -1 OFFSET ?))",
                (now - keep_s, keep_runs),
            ).rowcount
            while self._used_bytes() > self._keep_bytes:
                oldest = f"SELECT id FROM run WHERE state IN {ENDED!r} ORDER BY updated_at LIMIT 1"
                more = database.execute(f"DELETE FROM run WHERE id IN ({oldest})").rowcount
                if not more:
                    break
                gone += more
        return gone

    def check(self) -> None:
        """Raises sqlite3.Error when nothing can be written."""
        with self._writing() as database:
            database.execute(f"PRAGMA user_version = {VERSION}")

    def _used_bytes(self) -> int:
        (pages,) = self._database.execute("PRAGMA page_count").fetchone()
        (free,) = self._database.execute("PRAGMA freelist_count").fetchone()
        return (int(pages) - int(free)) * PAGE_BYTES

    def _as_it_stands(self, record: RunRecord) -> RunRecord:
        if record.state != "running":
            return record
        pid = self.locks.owner(record.id)
        return msgspec.structs.replace(record, pid=pid, state="interrupted" if pid is None else "running")

    def _query(self, sql: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._one_at_a_time:
            return self._database.execute(sql, parameters).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._one_at_a_time, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            yield self._database


def _open(path: Path, keep_bytes: int) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        _check(database, path)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        database.execute(f"PRAGMA max_page_count = {FULL_FACTOR * keep_bytes // PAGE_BYTES}")
        database.execute("BEGIN IMMEDIATE")  # two processes that open a new file at once: the second finds it made
        if database.execute("PRAGMA user_version").fetchone() == (0,):
            for statement in SCHEMA.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")
    except sqlite3.Error as error:
        database.close()
        raise StartupError(
            f"{path}: the journal of runs is damaged, or no journal ({error}); move it away, or name another one"
        ) from error
    except StartupError:
        database.close()
        raise
    return database


def _check(database: sqlite3.Connection, path: Path) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION_ID:
        raise StartupError(f"{path}: a database, and no journal of Crucible's; name another file")
    if version > VERSION:
        raise StartupError(f"{path}: the journal is of a newer Crucible (form {version}, this one knows {VERSION})")
    if path.stat().st_size <= MAX_CHECKED_BYTES and database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise sqlite3.DatabaseError("its pages do not fit together")
