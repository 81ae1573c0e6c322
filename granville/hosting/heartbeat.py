"""When a driver's process ended its last step: one number in memory that both processes have. Saying it costs the one
less than a microsecond a step, and reading it the other no answer from a process that hangs."""

from __future__ import annotations

import mmap
import os
import tempfile
import time

SIZE = mmap.PAGESIZE


class Heartbeat:
    """Seconds of the monotonic clock, which is one for all processes of a machine."""

    def __init__(self, fd: int) -> None:
        """Over a file of SIZE bytes, which may be closed afterwards."""
        self._memory = mmap.mmap(fd, SIZE)
        self._seconds = memoryview(self._memory).cast("d")

    def beat(self) -> None:
        self._seconds[0] = time.monotonic()

    @property
    def last(self) -> float:
        """0 before the first."""
        return self._seconds[0]


def heartbeat_file() -> int:
    """A descriptor of a file without a name, for as long as somebody has it open."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("granville-heartbeat")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, SIZE)
    return fd
