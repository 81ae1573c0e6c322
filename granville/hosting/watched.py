"""A command run to its end, its output heard line by line, within a time."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

STOP_S = 10.0
"""What a process group gets between SIGTERM and SIGKILL."""


class Runner(Protocol):
    def __call__(
        self, command: Sequence[str], variables: Mapping[str, str], hear: Callable[[str], object], limit_s: float
    ) -> int | None:
        """The exit status, below zero for a signal; None when the time was up. `hear` gets each line, stdout and stderr
        together, its end included. `variables` are set beside the environment's own."""


def run_watched(
    command: Sequence[str], variables: Mapping[str, str], hear: Callable[[str], object], limit_s: float
) -> int | None:
    """In a process group of its own, which is gone when this returns or raises (Ctrl-C, an error of `hear`)."""
    process = subprocess.Popen(
        command,
        env=os.environ | dict(variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        start_new_session=True,
    )
    late = threading.Event()

    def give_up() -> None:
        late.set()
        _end(process, signal.SIGKILL)

    timer = threading.Timer(limit_s, give_up)
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            hear(line)
        code = process.wait()
    except BaseException:
        _end(process, signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            _end(process, signal.SIGKILL)
            process.wait()
        raise
    finally:
        timer.cancel()
        if process.stdout is not None:
            process.stdout.close()
    return None if late.is_set() else code


def _end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """The whole group: compilers are children of children. It may have ended by itself."""
    if process.poll() is None:
        os.killpg(process.pid, number)
