"""Threads for tools that are plain functions. A thread cannot be ended from outside: one that hangs is left behind when
its call is cancelled, and only so many may be left before further calls are refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import trio

from granville.crucible.tools.interface import ToolFailed

MAX_THREADS = 64
"""Of all runs of the process, those left behind counted in; further calls wait for one."""
MAX_ABANDONED_THREADS = 32


class _Running:
    """One call, as its thread and its task both see it. Guarded by the lock of its Threads."""

    started = False
    ended = False
    abandoned = False


class Threads:
    def __init__(self, *, most: int = MAX_THREADS, most_abandoned: int = MAX_ABANDONED_THREADS) -> None:
        self._limiter = trio.CapacityLimiter(most)
        self._most_abandoned = most_abandoned
        self._lock = threading.Lock()
        self.abandoned = 0
        """Calls that were given up, and whose function has not returned yet."""

    async def run(self, name: str, function: Callable[[], Any]) -> Any:
        """What the function returns or raises. Cancelled, it leaves the thread to itself.

        Raises ToolFailed when too many threads are left behind.
        """
        if self.abandoned >= self._most_abandoned:
            raise ToolFailed(
                f"{name}: not called: {self.abandoned} calls of tools that were given up still hang, and that is the "
                "most; mend the tool that hangs, and start crucible again"
            )
        running = _Running()

        def work() -> Any:
            with self._lock:
                if running.abandoned:
                    return None
                running.started = True
            try:
                return function()
            finally:
                with self._lock:
                    running.ended = True
                    if running.abandoned:
                        self.abandoned -= 1

        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)
        except trio.Cancelled:
            with self._lock:
                running.abandoned = True
                if running.started and not running.ended:
                    self.abandoned += 1
            raise


THREADS = Threads()
"""Those of the process: a thread that hangs outlives its run."""
