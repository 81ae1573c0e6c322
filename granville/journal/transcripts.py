"""Sessions on disk, in SQLite: what was said outlives the daemon.

Every turn that ends is committed before its result goes out, to the write-ahead log and without waiting for the disk
(synchronous=NORMAL): a daemon that is killed has lost nothing, a machine that loses power may have lost the last turns.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from granville.scheduling.sessions import MemoryTranscripts, Transcript, Transcripts, Turn

log = logging.getLogger(__name__)

FILE = "sessions.db"
PAGE_BYTES = 4096
MIN_BYTES = 1 << 20
DISK_SHARE = 8
"""One part in so many of what states and transcripts may take on disk is the transcripts'."""
PRUNE_SHARE = 0.1
"""When the file is full, so much of the sessions is forgotten, the quiet for longest first."""
MAX_CHECKED_BYTES = 64 << 20
"""A larger file is not read through at the start."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS session (id TEXT PRIMARY KEY, model_id TEXT, used_at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS session_by_use ON session (used_at);
CREATE TABLE IF NOT EXISTS turn (
    session TEXT NOT NULL REFERENCES session (id) ON DELETE CASCADE,
    number INTEGER NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL, token_ids BLOB NOT NULL,
    PRIMARY KEY (session, number)
) WITHOUT ROWID;
"""


@contextmanager
def open_transcripts(folder: Path | None, *, max_sessions: int, ttl_s: float, disk_bytes: int) -> Iterator[Transcripts]:
    """Transcripts in a folder, or in memory only where there is none, no room is given, another daemon has it, or it
    cannot be used; then a line of the log says so."""
    memory = MemoryTranscripts(max_sessions)
    if folder is None or not disk_bytes:
        yield memory
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        log.warning("sessions stay in memory folder=%s error=%s", folder, error.strerror)
        yield memory
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            database = _open(folder / FILE, max(MIN_BYTES, disk_bytes // DISK_SHARE))
        except BlockingIOError:
            log.warning("sessions stay in memory, the folder is another daemon's folder=%s", folder)
            yield memory
            return
        except (OSError, sqlite3.Error) as error:
            log.warning("sessions stay in memory folder=%s error=%s", folder, error)
            yield memory
            return
        with closing(database):
            yield SqliteTranscripts(database, memory, max_sessions=max_sessions, ttl_s=ttl_s)
    finally:
        os.close(lock)


class SqliteTranscripts:
    def __init__(
        self, database: sqlite3.Connection, memory: MemoryTranscripts, *, max_sessions: int, ttl_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._database = database
        self._memory = memory
        """Those that could not be written."""
        self._max_sessions = max_sessions
        self._ttl_s = ttl_s
        self._clock = clock
        with database:
            database.execute("DELETE FROM session WHERE used_at < ?", (clock() - ttl_s,))
        self._count = self._counted()

    def __len__(self) -> int:
        return self._count + len(self._memory)

    def load(self, id: str) -> Transcript | None:
        unwritten = self._memory.load(id)
        if unwritten is not None:
            return unwritten
        try:
            row = self._database.execute("SELECT model_id, used_at FROM session WHERE id = ?", (id,)).fetchone()
            if row is None:
                return None
            if row[1] < self._clock() - self._ttl_s:
                self.forget(id)
                return None
            turns = self._database.execute(
                "SELECT role, content, token_ids FROM turn WHERE session = ? ORDER BY number", (id,)
            )
            return Transcript(tuple(Turn(role, content, _ids(blob)) for role, content, blob in turns), row[0])
        except sqlite3.Error as error:
            log.warning("a session could not be read error=%s", error)
            return None

    def save(self, id: str, transcript: Transcript, kept: int) -> None:
        was_unwritten = self._memory.load(id) is not None
        self._memory.forget(id)
        for last_try in (False, True):
            try:
                with self._database:
                    self._write(id, transcript, 0 if was_unwritten else kept)
                return
            except sqlite3.Error as error:
                self._count = self._counted()
                if last_try or not self._prune(error):
                    log.warning("a session could not be written and stays in memory error=%s", error)
                    self._memory.save(id, transcript, 0)
                    return

    def forget(self, id: str) -> None:
        self._memory.forget(id)
        try:
            with self._database:
                self._count -= self._database.execute("DELETE FROM session WHERE id = ?", (id,)).rowcount
        except sqlite3.Error as error:
            log.warning("a session could not be forgotten error=%s", error)

    def _write(self, id: str, transcript: Transcript, kept: int) -> None:
        new = self._database.execute(
            "INSERT INTO session VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET model_id = ?2, used_at = ?3 "
            "RETURNING NOT EXISTS (SELECT 1 FROM turn WHERE session = ?1)",
            (id, transcript.model_id, self._clock()),
        ).fetchone()[0]
        if new:  # or forgotten since its last turn, to make room
            kept = 0
        self._database.execute("DELETE FROM turn WHERE session = ? AND number >= ?", (id, kept))
        self._database.executemany(
            "INSERT INTO turn VALUES (?, ?, ?, ?, ?)",
            (
                (id, number, turn.role, turn.content, array("i", turn.token_ids).tobytes())
                for number, turn in enumerate(transcript.turns[kept:], kept)
            ),
        )
        if new and self._count >= self._max_sessions:
            self._forget_oldest(self._count + 1 - self._max_sessions)
        self._count += bool(new)

    def _counted(self) -> int:
        (count,) = self._database.execute("SELECT count(*) FROM session").fetchone()
        return int(count)

    def _prune(self, error: sqlite3.Error) -> bool:
        """Make room where the file has reached its bound."""
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL or not self._count:
            return False
        try:
            with self._database:
                self._forget_oldest(max(1, int(self._count * PRUNE_SHARE)))
        except sqlite3.Error:
            return False
        return True

    def _forget_oldest(self, count: int) -> None:
        self._count -= self._database.execute(
            "DELETE FROM session WHERE id IN (SELECT id FROM session ORDER BY used_at LIMIT ?)", (count,)
        ).rowcount


def _open(path: Path, max_bytes: int) -> sqlite3.Connection:
    """The database, made if it is missing. One that is damaged is put aside."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # its log files get the same mode
    database = sqlite3.connect(path)
    try:
        if path.stat().st_size <= MAX_CHECKED_BYTES and database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("it is damaged")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA foreign_keys = ON")
        database.execute(f"PRAGMA max_page_count = {max_bytes // PAGE_BYTES}")
        database.executescript(SCHEMA)
    except sqlite3.DatabaseError as error:
        database.close()
        if isinstance(error, sqlite3.OperationalError):
            raise
        aside = path.with_name(f"{FILE}.damaged-{time.time_ns()}")
        log.warning("sessions are damaged and put aside file=%s error=%s", aside, error)
        path.replace(aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(FILE + suffix).unlink(missing_ok=True)
        return _open(path, max_bytes)
    return database


def _ids(blob: bytes) -> tuple[int, ...]:
    ids = array("i")
    ids.frombytes(blob)
    return tuple(ids)
