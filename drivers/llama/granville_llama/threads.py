"""With how many threads a model computes: the physical cores that this process may use, less what others use.

llama.cpp's threads wait for each other at barriers, several hundred times a step: with a core for all but one of them
the step takes as long as the one without a core takes to get one. So fewer threads are faster as soon as another
program runs. Whether one does is seen in two ways: by how much of the CPUs others use, and by a step that took
far longer than such a step takes.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
QUOTA = Path("/sys/fs/cgroup/cpu.max")
STAT = Path("/proc/stat")

SAMPLE_S = 0.1
"""Between two looks at what others use. The counters have ticks of 10 ms."""
SHORTEST_SAMPLE_S = 0.04
"""After a slow step; over less, ticks are no measure."""
LONGEST_PAUSE_S = 0.5
"""Between two steps; after a longer one the time before it says nothing about now."""
TOLERATED = 0.35
"""Of a core, used by others, beside which a thread is still worth having."""
TOLERATED_AT_FIRST = 1.2
"""The same when a model has been idle: one program that was busy just then is likely the client that woke it."""
FREE_AGAIN = 0.2
"""Of a core, below which it is taken back."""
LEVEL_WEIGHT = 0.5
"""Of the newest sample, in the running average that decides when no step was slow."""
CALM_S = 0.3
"""How long a core must have been free before it is taken back. Doubled when it had to be left again …"""
MOST_CALM_S = 10.0
"""… within this time, and up to this."""
SLOW = 2.0
SLOW_S = 0.015
"""A step is slow that took so many times, and so much, longer than expected."""
CUT = 4.0
CUT_S = 0.25
"""A step is cut short, and computed again, that takes so many times and so much longer than expected while others use
cores: beside a program with two busy threads one was seen to take 13 seconds."""
CUT_UNKNOWN_S = 1.0
"""The same for a step of which nothing is known yet."""
MOST_PATIENCE = 256.0
"""How many times as much a step may get after others were cut short, so that at last one comes to its end."""
PROBE_S = 2.0
"""Until one more thread is tried out for a step although others seem to have the core: they may be ones that give way.
Doubled when it was slow, …"""
MOST_PROBE_S = 64.0
"""… up to this."""
PROBE_GAIN = 0.85
"""What a step with one thread more may take of that with one less, to be worth it."""


def usable_cores(cpus: Path = CPUS, quota: Path = QUOTA) -> int:
    """Cores under the process's affinity, hyper-threads counted once (they share the units that matter here), and
    no more than the cgroup's quota pays for."""
    cores = {_siblings(cpus, cpu) for cpu in _allowed()}
    return max(1, min(len(cores), _quota(quota) or len(cores)))


class ThreadGovernor:
    """How many threads the next step gets. Pure: it is told what time it is and what was seen.

    A core that others use is left at once when a step was slow, otherwise when they have used it for some samples; it
    is taken back as soon as it has been free for a while. Where nothing tells what others use, and now and then where
    something does, one thread more is tried for a step."""

    def __init__(self, most: int, cpus: int | None = None) -> None:
        """`most` threads, on `cpus` logical processors (as many as threads if not given)."""
        self.threads = most
        self.probing = False
        """The next step, and it alone, is computed with one thread more."""
        self._most = most
        self._cpus = most if cpus is None else cpus
        self._level: float | None = None
        """Cores used by others, lately."""
        self._blind = False
        """Nothing tells."""
        self._free_since: float | None = None
        self._calm_s = CALM_S
        self._probe_s = PROBE_S
        self._probe_at = 0.0
        self._taken_at: float | None = None
        self._gives_way = False
        """Others use the cores, and still one thread more was faster: only a slow step says otherwise."""

    @staticmethod
    def is_slow(seconds: float, expected: float) -> bool:
        """`expected` 0: not known."""
        return expected > 0 and seconds > max(SLOW * expected, expected + SLOW_S)

    def before(self, now: float) -> int:
        """The threads of a step that begins now."""
        # Not where others have more than what is left: a step with a thread that gets no core may take seconds.
        left = self._cpus - self.threads + TOLERATED
        bearable = self._blind or (self._level is not None and self._level < left)
        self.probing = self.threads < self._most and now >= self._probe_at and bearable
        return self.threads + self.probing

    def begin(self, foreign: float | None) -> None:
        """Nothing ran for a while, in which others used `foreign` cores: what was seen before is not now."""
        self._level = self._free_since = None
        if foreign is not None:
            self.threads = min(self.threads, self._fit(foreign, TOLERATED_AT_FIRST))

    @property
    def crowded(self) -> bool:
        """Others have cores that the threads would need: steps take longer than they should."""
        return self._level is not None and not self._gives_way and self._fit(self._level, TOLERATED) < self.threads

    def probed(self, now: float, seconds: float | None, expected: float) -> None:
        """The step with one thread more took `seconds`, None: it was cut short. One without it is expected to take
        `expected`, 0: not known."""
        self.probing = False
        if expected and seconds is not None and seconds < PROBE_GAIN * expected:
            self._gives_way = True
            self._take(self.threads + 1, now)
            self._probe_s = PROBE_S
        else:
            self._probe_s = min(MOST_PROBE_S, 2 * self._probe_s)
        self._probe_at = now + self._probe_s

    def seen(self, now: float, foreign: float | None, *, slow: bool) -> None:
        """Others used `foreign` cores since the last call (None: no telling); `slow` says that of the last step."""
        self._blind = foreign is None
        if foreign is None:
            if slow and self.threads > 1:
                self._leave(1, now)
            return
        old = self._level
        self._level = foreign if slow or old is None else old + LEVEL_WEIGHT * (foreign - old)
        self._gives_way &= not slow
        fits = self._fit(self._level, TOLERATED)
        if fits < self.threads and (slow or old is not None):
            if not self._gives_way:
                self._leave(fits, now)
        elif self._fit(max(self._level, foreign), FREE_AGAIN) > self.threads:
            if self._free_since is None:
                self._free_since = now
            if now - self._free_since >= self._calm_s:
                self._take(self._fit(self._level, FREE_AGAIN), now)
        else:
            self._free_since = None

    def _fit(self, foreign: float, tolerated: float) -> int:
        return min(self._most, max(1, int(self._cpus - foreign + tolerated)))

    def _take(self, threads: int, now: float) -> None:
        self.threads = threads
        self._taken_at = now
        self._free_since = None

    def _leave(self, threads: int, now: float) -> None:
        in_vain = self._taken_at is not None and now - self._taken_at < MOST_CALM_S
        self._calm_s = min(MOST_CALM_S, 2 * self._calm_s) if in_vain else CALM_S
        self.threads = threads
        self._free_since = None
        self._probe_at = now + self._probe_s


class CpuSensor:
    """What others use of the CPUs that this process may use. Without /proc there is no telling."""

    def __init__(self, stat: Path = STAT, own_s: Callable[[], float] | None = None) -> None:
        self._stat = stat
        self._own_s = own_s or _own_cpu_s
        self._names = {f"cpu{cpu}" for cpu in _allowed()}
        self.cpus = len(self._names)
        self._before: tuple[float, float, float] | None = None

    def foreign(self, now: float) -> float | None:
        """Cores used by others since the last call. None: no telling."""
        before, self._before = self._before, self._read(now)
        return self._between(before, self._before)

    def peek(self, now: float) -> float | None:
        """The same, from any thread, without ending the time that the next call tells of."""
        return self._between(self._before, self._read(now))

    @staticmethod
    def _between(
        before: tuple[float, float, float] | None, after: tuple[float, float, float] | None
    ) -> float | None:  # fmt: skip
        if before is None or after is None or after[0] <= before[0]:
            return None
        seconds, busy, own = (new - old for new, old in zip(after, before, strict=True))
        return max(0.0, busy - own) / seconds

    def _read(self, now: float) -> tuple[float, float, float] | None:
        try:
            lines = self._stat.read_text().splitlines()
            ticks = 0
            for line in lines:
                name, *fields = line.split()
                if name in self._names:
                    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
                    ticks += user + nice + system + irq + softirq + steal
        except (OSError, ValueError):  # not Linux
            return None
        return now, ticks / os.sysconf("SC_CLK_TCK"), self._own_s()


class Fuse:
    """Ends a step that takes far too long, from a thread of its own, which sleeps until a step's time is up."""

    def __init__(self, blow: Callable[[], None], is_needed: Callable[[], bool]) -> None:
        """`is_needed` is asked when the time is up; if not, the step gets the same time again."""
        self._blow = blow
        self._is_needed = is_needed
        self._seconds = 0.0
        self._until: float | None = None
        self._blown = False
        self._idle = False
        self._closed = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def arm(self, seconds: float) -> None:
        self._blown = False
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="granville-llama-fuse", daemon=True)
            self._thread.start()
        elif self._idle:  # otherwise it sleeps until an earlier step's time, and then finds this one's
            self._wake.set()

    def disarm(self) -> bool:
        """Whether it has blown since it was armed."""
        self._until = None
        blown, self._blown = self._blown, False
        return blown

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed:
            self._idle = True
            until = self._until
            if until is None:
                self._wake.wait()
            elif until > time.monotonic():
                self._idle = False
                self._wake.wait(until - time.monotonic())
            elif not self._is_needed():
                if self._until == until:  # still the same step
                    self._until = time.monotonic() + self._seconds
            elif self._until == until:
                self._until, self._blown = None, True
                self._blow()
            self._wake.clear()


class Crew:
    """The threads of one model: the governor with a clock and eyes. Called from the model's one thread."""

    def __init__(
        self, most: int, set_threads: Callable[[int], None], *,
        pinned: bool, interrupt: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """`set_threads` tells the backend, between steps; `interrupt` ends a step, from any thread, which is then
        computed again. `pinned` keeps the number, and ends no step."""
        self._set_threads = set_threads
        self._fuse = None if interrupt is None else Fuse(interrupt, self._is_disturbed)
        self._patience = 1.0
        """Grows with steps cut short one after another."""
        self._threads = most
        self._sensor = CpuSensor(own_s=self._own_s)
        self._governor = None if pinned or most < 2 else ThreadGovernor(most, max(most, self._sensor.cpus))
        self._began_cpu_s = 0.0
        self.used_s = 0.0
        """CPU seconds of all its threads so far, about: the others do as much as the calling one."""
        self._ended_at = -LONGEST_PAUSE_S
        self._sampled_at = 0.0
        _crews.add(self)
        self._sensor.foreign(time.monotonic())

    @property
    def threads(self) -> int:
        return self._threads if self._governor is None else self._governor.threads

    def before(self) -> int:
        """A step begins. The number of threads that it may be expected to take as long as with."""
        self._began_cpu_s = time.thread_time()
        governor = self._governor
        if governor is None:
            return self._threads
        now = time.monotonic()
        if now - self._ended_at >= LONGEST_PAUSE_S:
            governor.begin(self._sensor.foreign(now))
            self._sampled_at = now
        threads = governor.before(now)
        if threads != self._threads:
            self._set_threads(threads)
            self._threads = threads
        return governor.threads

    def guard(self, expected: float) -> None:
        """The step, expected to take so long (0: not known), is interrupted if it takes far longer and others have the
        cores; call `after` when it is over."""
        if self._fuse and self._governor and self._threads > 1:
            limit = max(CUT * expected, expected + CUT_S) if expected else CUT_UNKNOWN_S
            self._fuse.arm(self._patience * limit)

    def after(self, seconds: float | None, expected: float) -> bool:
        """The step took `seconds`, None: it was interrupted; `expected` is what it takes with what `before` said, 0:
        not known. Whether it was an ordinary one, to learn from."""
        self.used_s += (time.thread_time() - self._began_cpu_s) * self._threads
        cut = self._fuse is not None and self._fuse.disarm()
        governor = self._governor
        if governor is None:
            return seconds is not None
        self._ended_at = now = time.monotonic()
        if seconds is None and not cut:
            return False
        if governor.probing:
            governor.probed(now, seconds, expected)
            return False
        self._patience = min(MOST_PATIENCE, CUT * self._patience) if seconds is None else 1.0
        slow = seconds is None or governor.is_slow(seconds, expected)
        since = now - self._sampled_at
        if since < (SHORTEST_SAMPLE_S if slow else SAMPLE_S):
            return seconds is not None
        governor.seen(now, self._sensor.foreign(now), slow=slow)
        self._sampled_at = now
        return seconds is not None and governor.threads >= self._threads and not governor.crowded

    def _is_disturbed(self) -> bool:
        foreign = self._sensor.peek(time.monotonic())
        return foreign is None or foreign > TOLERATED

    def close(self) -> None:
        if self._fuse:
            self._fuse.close()
        _crews.discard(self)

    def _own_s(self) -> float:
        """The process's CPU seconds but for those of its other models, which are others here."""
        return _own_cpu_s() - sum(crew.used_s for crew in tuple(_crews) if crew is not self)


_crews: set[Crew] = set()
"""Of all models in the process."""


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _allowed() -> set[int] | range:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _siblings(cpus: Path, cpu: int) -> str:
    try:
        return (cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:  # not Linux, or a container without sysfs: count every one
        return str(cpu)


def _quota(path: Path) -> int | None:
    """Whole CPUs of a cgroup v2 `cpu.max` ("quota period" in microseconds), None for no limit."""
    try:
        quota, period = path.read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2 here
        return None
