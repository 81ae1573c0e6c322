"""Keeps a daemon's own thread busy at almost no cost of its own: one connection that is always full of requests
which the daemon has to read, check and refuse.

    .venv/bin/python -m benchmarks.flood SOCKET

A block of requests for a model that does not exist is made once and sent again and again by one thread; what comes
back is counted in bytes by another. It prints the rate when its standard input ends.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time

from granville.wire.framing import FrameReader
from granville.wire.messages import Request, encode

BLOCK = 200
RECEIVE_BYTES = 1 << 20


def flood(path: str) -> float:
    """Refused requests a second, over the time until standard input ends."""
    request = encode(Request(id="flood", text="Never answered.", model_id="no-such-model"))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        reply_bytes = _one_reply(connection, request)
        sender = threading.Thread(target=_send, args=(connection, request * BLOCK), daemon=True)
        received = Count()
        receiver = threading.Thread(target=_receive, args=(connection, received), daemon=True)
        sender.start()
        receiver.start()
        began = time.monotonic()
        sys.stdin.read()
        rate = received.bytes / reply_bytes / (time.monotonic() - began)
        connection.shutdown(socket.SHUT_RDWR)
        sender.join()
        receiver.join()
        return rate


class Count:
    def __init__(self) -> None:
        self.bytes = 0


def _one_reply(connection: socket.socket, request: bytes) -> int:
    """The size of a reply; all are the same. Raises RuntimeError when it is not the refusal that was asked for."""
    connection.sendall(request)
    data = connection.recv(RECEIVE_BYTES)
    replies = list(FrameReader().feed(data))
    if len(replies) != 1 or not isinstance(replies[0], dict) or replies[0].get("code") != 404:
        raise RuntimeError(f"expected one reply with code 404, got {replies}")
    return len(data)


def _send(connection: socket.socket, block: bytes) -> None:
    with contextlib.suppress(OSError):  # the main thread shuts the connection down to end this
        while True:
            connection.sendall(block)


def _receive(connection: socket.socket, received: Count) -> None:
    with contextlib.suppress(OSError):
        while data := connection.recv(RECEIVE_BYTES):
            received.bytes += len(data)


if __name__ == "__main__":
    print(json.dumps({"refused_per_s": flood(sys.argv[1])}))
