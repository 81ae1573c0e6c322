"""Checks over many rounds: what grows with each job, or with each load, is a leak."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from granville.testing.conformance.checks import Fail, Skip, check
from granville.testing.conformance.rig import Rig, answered, words

FLOOR_BYTES = 1 << 20
"""What a process may grow by in any number of rounds: allocators keep some."""
JOB_BYTES = 4 << 10
LOAD_BYTES = 64 << 10
"""And for each round, of jobs and of loads: less than this is not told from chance."""
STEADY_SHARE = 0.25
"""Of all growth, in the second half of the rounds. What grows once is a cache, what grows in both halves a leak."""
JOBS_A_LOAD = 10
"""A load is worth as many rounds of jobs."""
FEWEST_ROUNDS = 6
WARM_UP_SHARE = 0.2
TIME_S = 20.0
"""Of a check; the rounds that are not done by then are left out, and the report says so."""
PROMPT_WORDS = 48


@dataclass(frozen=True, slots=True)
class Size:
    """What the process has of the system."""

    rss_bytes: int
    files: int
    threads: int

    @classmethod
    def now(cls) -> Size:
        gc.collect()
        _trim()
        return cls(_rss_bytes(), len(os.listdir("/dev/fd")), _threads())


def _trim() -> None:
    """Give back what the C allocator keeps, where it can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _rss_bytes() -> int:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    said = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return int(said.stdout) * 1024


def _threads() -> int:
    if sys.platform == "linux":
        return len(os.listdir("/proc/self/task"))
    return threading.active_count()


def growth(rounds: int, once: Callable[[int], None], bytes_a_round: int, what: str) -> str:
    """Do it again and again and judge what has grown. Fails for what grows steadily, over the bound."""
    began = time.monotonic()
    warm = max(2, int(rounds * WARM_UP_SHARE))
    for number in range(warm):
        once(number)
    before = middle = Size.now()
    done, half = 0, max(1, rounds // 2)
    while done < rounds and (done < FEWEST_ROUNDS or time.monotonic() - began < TIME_S):
        once(warm + done)
        done += 1
        if done == half:
            middle = Size.now()
    after = Size.now()
    allowed = FLOOR_BYTES + done * bytes_a_round
    grown = after.rss_bytes - before.rss_bytes
    late = after.rss_bytes - middle.rss_bytes if done > half else grown
    if grown > allowed and late > STEADY_SHARE * grown:
        raise Fail(
            f"memory grew by {_mb(grown)} over {done} {what}s and did not stop, {grown / done / 1024:.0f} KiB for each "
            f"{what}; {_mb(allowed)} is the most that passes"
        )
    for name, first, last in (("files", before.files, after.files), ("threads", before.threads, after.threads)):
        if last - first >= max(2, done // 2):
            raise Fail(f"{last - first} more {name} are open after {done} {what}s: {first} before, {last} after")
    short = "" if done == rounds else f" (of {rounds}: {TIME_S:g} s were up)"
    return (
        f"{done} {what}s{short}: memory {_mb(grown, sign='+')} (bound {_mb(allowed)}), "
        f"{after.files} files, {after.threads} threads"
    )


def _mb(size: float, sign: str = "") -> str:
    return f"{size / 1e6:{sign}.1f} MB"


@check(
    "leaks-jobs",
    group="leaks-jobs",
    right="what a job takes is given back when it ends: memory, files and threads do not grow with the number of jobs",
    where="docs/drivers.md: Check it",
    needs=("answer",),
    text=False,
)
def leaks_jobs(rig: Rig) -> str:
    """Many jobs, one after another"""
    if not rig.plan.rounds:
        raise Skip("--rounds 0")
    model = rig.model

    def once(number: int) -> None:
        job = model.submit(rig.task(words(PROMPT_WORDS), max_tokens=4))
        if number % 4 == 3:
            model.step()
            model.cancel(job.task.id)
        else:
            answered(model.until_ended(job)[0])
        job.pieces.clear()

    return growth(rig.plan.rounds, once, JOB_BYTES, "job")


@check(
    "leaks-loads",
    group="leaks-loads",
    right="close() frees everything: memory, files and threads do not grow with the number of loads",
    where="interface: Model.close",
    needs=("reload",),
    text=False,
)
def leaks_loads(rig: Rig) -> str:
    """Many loads, one after another"""
    if not rig.plan.rounds:
        raise Skip("--rounds 0")

    def once(number: int) -> None:
        model = rig.load()
        answered(model.ask(words(8), max_tokens=2))
        model.close()

    return growth(max(FEWEST_ROUNDS, rig.plan.rounds // JOBS_A_LOAD), once, LOAD_BYTES, "load")
