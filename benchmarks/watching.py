"""A daemon's threads and tokens a second over time, asked of it from beside the load."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgpack

from granville.scheduling.roster import RATE_WINDOW_S

EVERY_S = 0.25
TIMEOUT_S = 10.0
READ_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Sample:
    at: float
    """Seconds of `time.monotonic`."""
    threads: int
    tokens_per_s: float
    """Since the sample before."""


@contextmanager
def watch_threads(path: str) -> Iterator[list[Sample]]:
    """Samples of the first model of the daemon at the socket `path`, which grow until the end of the block."""
    samples: list[Sample] = []
    over = threading.Event()

    def watch() -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(path)
            unpacker = msgpack.Unpacker()
            at, rate = time.monotonic(), _rate(_ask(connection, unpacker))
            while not over.wait(EVERY_S):
                model, before = _ask(connection, unpacker), at
                at = time.monotonic()
                # The daemon's figure is an average that fades; what came since the last sample is what it rose by.
                kept = rate * math.exp((before - at) / RATE_WINDOW_S)
                rate = _rate(model)
                fresh = max(0.0, rate - kept) * RATE_WINDOW_S / (at - before)
                samples.append(Sample(at, int(model["driver_stats"]["threads"]), fresh))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _rate(model: dict[str, Any]) -> float:
    return float(model["tokens_per_s"])


def _ask(connection: socket.socket, unpacker: msgpack.Unpacker) -> dict[str, Any]:
    connection.sendall(msgpack.packb({"op": "status"}))
    while True:
        for status in unpacker:
            model: dict[str, Any] = status["models"][0]
            return model
        unpacker.feed(connection.recv(READ_BYTES))
