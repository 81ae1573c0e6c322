"""kill -9 of the process that executes runs, and of Granville under it: all runs end, once, as they should."""

from __future__ import annotations

import signal
import time
from contextlib import closing
from pathlib import Path

from benchmarks.crucible import ended_once, killed, living
from granville.crucible.journal.runs import Journal
from tests.e2e.harness import running

RUNS = 6
SLOW = {"decode_s": 0.04}
"""A run is five steps of four to eight decodes: about a second and a half."""


def test_the_process_of_the_runs_is_killed(folder: Path) -> None:
    with running(folder, "--slots", "8", "--no-http", config=SLOW) as daemon:
        _, kills = killed(str(daemon.socket), folder, RUNS, 3)
    assert kills
    assert ended_once(folder, RUNS) == RUNS


def test_granville_is_killed(folder: Path) -> None:
    with (
        running(folder, "--slots", "8", "--no-http", config=SLOW) as daemon,
        living(str(daemon.socket), folder, RUNS) as process,
    ):
        time.sleep(0.4)  # some steps have ended, and some have not
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        with running(folder, "--slots", "8", "--no-http", config=SLOW):
            assert process.wait(60) == 0
    assert ended_once(folder, RUNS) == RUNS
    with closing(Journal.open(folder / "runs.db")) as journal:
        assert {step.attempts for record in journal.runs() for step in journal.steps(record.id)} == {1}
