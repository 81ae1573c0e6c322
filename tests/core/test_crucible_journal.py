"""The journal of runs as a file: how it is opened, what is kept, what is forgotten, who holds a run."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from granville.crucible.journal.records import (
    MAX_VALUE_BYTES,
    BadOutput,
    RunRecord,
    StepRecord,
    UnknownRun,
    packed,
    plain,
    shortened,
)
from granville.crucible.journal.runs import Journal
from granville.crucible.journal.statements import VERSION, cancel_steps, new_run, put_step, set_run
from granville.crucible.running.events import RunState
from granville.crucible.workflow.model import Step, Workflow
from granville.errors import Conflict, StartupError

FLOW = Workflow(name="flow", steps=(Step(id="a", tool="t", with_={"sound": b"\x00\xff"}),))


def add(
    journal: Journal, id: str, *, at: float = 1.0, state: RunState = "running", value: bytes = b"", served: bool = False
) -> None:
    record = RunRecord(id=id, workflow="flow", state="running", created_at=at, updated_at=at, inputs={}, served=served)
    rows = [new_run(record, msgspec.msgpack.encode(FLOW), b"digest", packed({"x": b"\x00"}, "inputs"))]
    rows.append(put_step(id, StepRecord(key="a", kind="tool", state="finished", ended=True), packed(value, "value")))
    if state != "running":
        rows.append(set_run(id, state, at, outputs=packed({"a": 1}, "outputs")))
    journal.apply(rows)


def test_what_is_written_is_there_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "runs.db"
    with Journal.open(path) as journal:
        add(journal, "r-1", state="finished", value=b"sound")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with Journal.open(path) as journal:
        record = journal.run("r-1")
        assert (record.state, record.inputs, record.outputs) == ("finished", {"x": b"\x00"}, {"a": 1})
        assert (record.ended_at, record.steps_done) == (1.0, 1)
        assert journal.workflow("r-1") == FLOW
        assert journal.digest("r-1") == b"digest"
        assert journal.digest("r-2") is None
        (step,) = journal.steps("r-1")
        assert step.output == b"sound"
        assert journal.step("r-1", "a") == step
        assert journal.step("r-1", "b") is None
        (listed,) = journal.runs()
        assert (listed.inputs, listed.outputs) == (None, None)
        with pytest.raises(UnknownRun, match="r-2"):
            journal.run("r-2")
        journal.check()


def test_a_commit_is_all_or_nothing(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "runs.db") as journal:
        add(journal, "r-1")
        with pytest.raises(sqlite3.IntegrityError):
            journal.apply([set_run("r-1", "failed", 2.0), ("INSERT INTO run (id) VALUES ('r-1')", ())])
        assert journal.run("r-1").state == "interrupted"


def test_an_end_is_the_only_end(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "runs.db") as journal:
        add(journal, "r-1", state="finished")
        journal.apply([set_run("r-1", "cancelled", 9.0), set_run("r-1", "running", 9.0)])
        assert journal.run("r-1").state == "finished"
        add(journal, "r-2", state="failed")
        running = StepRecord(key="b", kind="tool", state="running")
        journal.apply([put_step("r-2", running), set_run("r-2", "running", 9.0), cancel_steps("r-2", 9.0)])
        assert [step.state for step in journal.steps("r-2")] == ["finished", "cancelled"]


@pytest.mark.parametrize(
    "content", [b"no database at all, but long enough to be looked at" * 100, b"SQLite format 3\0" + b"x" * 5000]
)
def test_what_is_damaged_is_said_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(content)
    with pytest.raises(StartupError, match=r"damaged, or no journal.*move it away"):
        Journal.open(path)
    assert path.read_bytes() == content


def test_a_page_that_was_overwritten_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with Journal.open(path) as journal:
        for number in range(200):
            add(journal, f"r-{number}", value=b"x" * 1000)
    data = bytearray(path.read_bytes())
    data[4096 * 20 : 4096 * 24] = b"\xaa" * 4096 * 4
    path.write_bytes(data)
    with pytest.raises(StartupError, match="damaged"):
        Journal.open(path)


def test_somebody_elses_database_and_a_newer_journal_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    with closing(sqlite3.connect(foreign)) as database:
        database.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StartupError, match="no journal of Crucible's"):
        Journal.open(foreign)
    path = tmp_path / "runs.db"
    Journal.open(path).close()
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(StartupError, match="newer Crucible"):
        Journal.open(path)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot be opened"):
        Journal.open(tmp_path / "file" / "runs.db")


def test_old_runs_go_and_those_that_go_on_stay(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "runs.db") as journal:
        for number in range(6):
            add(journal, f"r-{number}", at=float(number), state="finished")
        add(journal, "r-on", at=0.0)
        assert journal.prune(10.0, keep_runs=100, keep_s=8.5) == 2
        assert journal.prune(10.0, keep_runs=2) == 2
        assert {record.id for record in journal.runs()} == {"r-4", "r-5", "r-on"}
        assert journal.steps("r-0") == []


def test_a_file_that_is_full_loses_its_oldest_runs(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "runs.db", keep_bytes=1 << 20) as journal:
        for number in range(16):
            add(journal, f"r-{number:02}", at=float(number), state="finished", value=b"x" * 100_000)
        assert journal.prune(16.0) > 4
        assert journal.runs()[0].id == "r-15"
        add(journal, "r-on", at=99.0, value=b"x" * 900_000)
        with pytest.raises(sqlite3.OperationalError, match="full"):
            add(journal, "r-more", value=b"x" * 1_500_000)
        assert journal.prune(16.0) > 0
        assert "r-on" in {record.id for record in journal.runs()}


def test_runs_are_listed_newest_first_by_how_they_stand(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "runs.db") as journal:
        add(journal, "r-1", at=1.0, state="finished")
        add(journal, "r-2", at=2.0)
        add(journal, "r-3", at=3.0, served=True)
        add(journal, "r-4", at=4.0, state="interrupted")
        lock = journal.locks.take("r-3")
        states = {record.id: record.state for record in journal.runs()}
        assert states == {"r-4": "interrupted", "r-3": "running", "r-2": "interrupted", "r-1": "finished"}
        assert [record.id for record in journal.runs(state="interrupted")] == ["r-4", "r-2"]
        assert [record.id for record in journal.runs(state="running")] == ["r-3"]
        assert [record.id for record in journal.runs(limit=1)] == ["r-4"]
        assert journal.run("r-3").pid == os.getpid()
        assert journal.unfinished() == ["r-3"]
        journal.locks.release("r-3", lock)


def test_a_run_is_held_by_one_and_free_when_its_process_is_gone(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "runs.db") as journal:
        script = (
            "import sys, time; from pathlib import Path\n"
            "from granville.crucible.journal.locks import RunLocks\n"
            f"RunLocks(Path({str(journal.locks.folder)!r})).take('r-1'); print('held', flush=True); time.sleep(600)"
        )
        holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            assert journal.locks.owner("r-1") == holder.pid
            with pytest.raises(Conflict, match=f"process {holder.pid} executes"):
                journal.locks.take("r-1")
        finally:
            holder.kill()
            holder.communicate()
        assert journal.locks.owner("r-1") is None
        lock = journal.locks.take("r-1")
        assert journal.locks.owner("r-1") == os.getpid()
        journal.locks.release("r-1", lock)
        assert list(journal.locks.folder.iterdir()) == []


def test_whoever_only_looks_does_not_keep_a_run_from_being_taken(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "runs.db") as journal:
        journal.locks._path("r-1").write_text("999999999")
        looking = os.open(journal.locks._path("r-1"), os.O_RDWR)
        fcntl.flock(looking, fcntl.LOCK_SH)
        with pytest.raises(Conflict, match="just now"):
            journal.locks.take("r-1")
        os.close(looking)
        journal.locks.release("r-1", journal.locks.take("r-1"))


def test_values_are_kept_as_they_will_be_read_back() -> None:
    value, data = plain({"a": (1, 2), "b": b"\x00"}, "x")
    assert value == {"a": [1, 2], "b": b"\x00"}
    assert msgspec.msgpack.decode(data) == value
    for wrong in (object(), 2**70, {"x": {1j}}):
        with pytest.raises(BadOutput, match="the value is no value that can be kept"):
            plain(wrong, "the value")
    with pytest.raises(BadOutput, match=f"{MAX_VALUE_BYTES} are the most"):
        plain(b"x" * MAX_VALUE_BYTES, "the value")


def test_a_look_at_a_value_is_short_whatever_the_value() -> None:
    assert shortened("x" * 10, 4) == "xxxx… (10 characters)"
    assert shortened({"sound": b"123", "n": 1}, 50) == {"sound": "3 bytes", "n": 1}
    assert len(str(shortened([["word"] * 1000] * 1000, 50))) < 2000
    assert len(str(shortened({str(n): "word" for n in range(1000)}, 50))) < 500
