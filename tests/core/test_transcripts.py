"""Sessions on disk: what a new daemon finds, what is forgotten, and what a damaged or full disk costs."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from granville.journal.transcripts import FILE, SqliteTranscripts, open_transcripts
from granville.scheduling.sessions import MemoryTranscripts, Transcript, Transcripts, Turn

HELLO = Transcript((Turn("user", "hello, é世"), Turn("assistant", "hi", (1, 2**31 - 1))), "llama-1")


@contextmanager
def opened(folder: Path, **more: float) -> Iterator[Transcripts]:
    bounds = {"max_sessions": 100, "ttl_s": 1000.0, "disk_bytes": 1 << 30} | more
    with open_transcripts(
        folder,
        max_sessions=int(bounds["max_sessions"]),
        ttl_s=bounds["ttl_s"],
        disk_bytes=int(bounds["disk_bytes"]),
    ) as transcripts:
        yield transcripts


def extended(transcript: Transcript, text: str) -> Transcript:
    return Transcript((*transcript.turns, Turn("user", text), Turn("assistant", text.upper(), (3,))), "llama-2")


def test_a_new_daemon_finds_what_was_said(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    with opened(folder) as transcripts:
        assert transcripts.load("s") is None
        transcripts.save("s", HELLO, 0)
        transcripts.save("s", extended(HELLO, "more"), 2)
        transcripts.save("other", HELLO, 0)
        transcripts.forget("other")
    with opened(folder) as transcripts:
        assert transcripts.load("s") == extended(HELLO, "more")
        assert transcripts.load("other") is None
        assert len(transcripts) == 1
    for path in (folder, folder / FILE):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_what_was_said_is_there_without_a_close(tmp_path: Path) -> None:
    with opened(tmp_path) as transcripts:
        transcripts.save("s", HELLO, 0)
        (row,) = sqlite3.connect(f"file:{tmp_path / FILE}?mode=ro", uri=True).execute("SELECT count(*) FROM turn")
        assert row == (2,)


def test_a_history_that_was_replaced_is_replaced(tmp_path: Path) -> None:
    with opened(tmp_path) as transcripts:
        transcripts.save("s", extended(HELLO, "more"), 0)
        changed = Transcript((HELLO.turns[0], Turn("assistant", "no")), "llama-1")
        transcripts.save("s", changed, 1)
        assert transcripts.load("s") == changed


def test_a_folder_is_one_daemons(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path) as first, opened(tmp_path) as second:
        assert isinstance(first, SqliteTranscripts)
        assert isinstance(second, MemoryTranscripts)
        assert "another daemon" in caplog.text


@pytest.mark.parametrize("folder", [None, Path("/proc/nowhere")])
def test_without_a_folder_sessions_stay_in_memory(folder: Path | None) -> None:
    with open_transcripts(folder, max_sessions=10, ttl_s=10, disk_bytes=1 << 30) as transcripts:
        transcripts.save("s", HELLO, 0)
        assert transcripts.load("s") == HELLO


def test_the_quiet_for_longest_are_forgotten(tmp_path: Path) -> None:
    with opened(tmp_path, max_sessions=3) as transcripts:
        for id in "abc":
            transcripts.save(id, HELLO, 0)
        transcripts.save("a", extended(HELLO, "more"), 2)
        transcripts.save("d", HELLO, 0)
        assert [id for id in "abcd" if transcripts.load(id)] == ["a", "c", "d"]
        assert len(transcripts) == 3


def test_sessions_have_a_time_to_live(tmp_path: Path) -> None:
    now = [1000.0]
    with opened(tmp_path) as opener:
        assert isinstance(opener, SqliteTranscripts)
        transcripts = SqliteTranscripts(
            opener._database, MemoryTranscripts(10), max_sessions=10, ttl_s=60, clock=lambda: now[0]
        )
        transcripts.save("s", HELLO, 0)
        now[0] += 59
        assert transcripts.load("s") == HELLO
        now[0] += 2
        assert transcripts.load("s") is None
        assert len(transcripts) == 0


@pytest.mark.parametrize("damage", [b"not a database at all" * 500, None])
def test_a_damaged_file_is_put_aside(tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path) as transcripts:
        for number in range(50):
            transcripts.save(f"s{number}", HELLO, 0)
    path = tmp_path / FILE
    whole = path.read_bytes()
    path.write_bytes(damage or whole[:4096] + b"\xff" * (len(whole) - 4096))
    with opened(tmp_path) as transcripts:
        assert "damaged" in caplog.text
        transcripts.save("s", HELLO, 0)
        assert transcripts.load("s") == HELLO
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1


def test_a_full_file_makes_room_and_a_full_disk_is_lived_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = Transcript((Turn("user", "x" * 20_000), Turn("assistant", "y", (1,) * 1000)), "llama-1")
    with opened(tmp_path, disk_bytes=1, max_sessions=10_000) as transcripts:
        for number in range(120):
            transcripts.save(f"s{number}", long, 0)
        assert transcripts.load("s119") == long
        assert transcripts.load("s0") is None
        assert 10 < len(transcripts) < 60
        assert (tmp_path / FILE).stat().st_size <= 1 << 20
        assert isinstance(transcripts, SqliteTranscripts)
        assert "stays in memory" not in caplog.text
        transcripts._database.execute("PRAGMA query_only = ON")
        transcripts.save("s119", extended(long, "more"), 2)
        assert "stays in memory" in caplog.text
        assert transcripts.load("s119") == extended(long, "more")
        transcripts._database.execute("PRAGMA query_only = OFF")
        transcripts.save("s119", extended(extended(long, "more"), "and more"), 4)
        assert transcripts.load("s119") == extended(extended(long, "more"), "and more")


def test_a_session_that_was_forgotten_while_it_went_on_is_kept_whole(tmp_path: Path) -> None:
    """Others took its room; its next turn brings all of it back, not what is new alone."""
    with opened(tmp_path, max_sessions=1) as transcripts:
        transcripts.save("s", HELLO, 0)
        transcripts.save("other", HELLO, 0)
        assert transcripts.load("s") is None
        transcripts.save("s", extended(HELLO, "more"), len(HELLO.turns))
        assert transcripts.load("s") == extended(HELLO, "more")
