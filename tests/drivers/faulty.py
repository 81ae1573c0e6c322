"""A driver that repeats its prompt, a word a step, and does what a word of it says: `abort`, `kill`, `hang`, …"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from granville.hosting.interface import (
    Capabilities,
    DriverError,
    Event,
    Finished,
    Generate,
    ModelInfo,
    ModelSpec,
    Task,
    Token,
    Usage,
)

PATIENCE_S = 60.0


def pipe_to_the_kernel() -> int:
    """The one socket that this process has."""
    (fd,) = (fd for fd in range(3, 64) if is_socket(fd))
    return fd


def is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


def write(data: bytes) -> None:
    with socket.socket(fileno=os.dup(pipe_to_the_kernel())) as pipe:
        pipe.sendall(data)
    time.sleep(PATIENCE_S)


def close_the_pipe() -> None:
    os.close(pipe_to_the_kernel())
    time.sleep(PATIENCE_S)


def raise_(error: BaseException) -> None:
    raise error


FAULTS: Mapping[str, Callable[[], object]] = {
    "abort": lambda: ctypes.CDLL(None).abort(),
    "segfault": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: ctypes.CDLL(None).exit(3),
    "quit": lambda: sys.exit(4),
    # The one keeps the interpreter to itself, so that no other thread runs; the other does not.
    "hang": lambda: ctypes.PyDLL(None).sleep(600),
    "sleep": lambda: ctypes.CDLL(None).sleep(600),
    "garbage": lambda: write(b"\x04\0\0\0" + b"\xc1" * 4),
    "oversize": lambda: write(b"\xff" * 4),
    "close": close_the_pipe,
    "raise": lambda: raise_(ValueError("it was told to")),
    "fail": lambda: raise_(DriverError("it was told to fail")),
}


TEXTS: Mapping[str, Callable[[], str]] = {"surrogate": lambda: "\ud800", "huge": lambda: "x" * (130 << 20)}


class FaultyModel:
    def __init__(self, spec: ModelSpec) -> None:
        self.slots = spec.slots
        self.capabilities = Capabilities(
            resume=bool(spec.options.get("resume", True)), interruptible=bool(spec.options.get("interruptible", True))
        )
        self.info = ModelInfo("faulty", context_size=4096, memory_bytes=0)
        self._once = spec.options.get("once")
        self._step_s = float(cast(float, spec.options.get("step_s", 0.0)))
        self._jobs: dict[str, tuple[Generate, list[str], int]] = {}
        self._interrupted = threading.Event()

    def submit(self, request: Task) -> None:
        assert isinstance(request, Generate)
        self._jobs[request.id] = (request, request.messages[-1].content.split(), len(request.produced))

    def step(self, prefill_ms: float | None) -> list[Event]:
        self._interrupted.wait(self._step_s)
        self._interrupted.clear()
        events: list[Event] = []
        for id, (request, words, said) in list(self._jobs.items()):
            word = words[said]
            if word in FAULTS and self._is_due():
                FAULTS[word]()
            text = TEXTS[word]() if word in TEXTS else word
            events.append(Token(id, (" " if said else "") + text, (said,)))
            said += 1
            self._jobs[id] = (request, words, said)
            if said == min(len(words), request.max_tokens):
                del self._jobs[id]
                events.append(Finished(id, "stop", Usage(len(words), 0, said)))
        return events

    def cancel(self, id: str) -> None:
        self._jobs.pop(id, None)

    def park(self, id: str) -> None:
        raise DriverError("this driver cannot park")

    def resume(self, id: str) -> None:
        raise DriverError("this driver cannot park")

    def limit_cache(self, kv_ram_bytes: int) -> None: ...

    def stats(self) -> Mapping[str, int | float | str]:
        return {"running": len(self._jobs)}

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None: ...

    def _is_due(self) -> bool:
        """Every time, or only the first time of all when there is a file to remember it by."""
        if self._once is None:
            return True
        try:
            Path(str(self._once)).open("x").close()
        except FileExistsError:
            return False
        return True


class FaultyDriver:
    name = "faulty"
    version = "1"

    def load(self, spec: ModelSpec) -> FaultyModel:
        print("a line on the standard output")
        how = spec.options.get("load")
        if how == "refuse":
            raise DriverError("there is no such model")
        if how == "miss":
            import granville_that_is_not_there  # type: ignore[import-not-found]  # noqa: F401
        if how is not None:
            print("about to", how, file=sys.stderr, flush=True)
            FAULTS[str(how)]()
        return FaultyModel(spec)
