"""A bare Trio echo server on a Unix socket and its client: what Trio and two processes cost before any work is done.

.venv/bin/python -m benchmarks.echo serve PATH
.venv/bin/python -m benchmarks.echo drive PATH --connections 4 --messages 20000
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import cyclopts
import trio

from granville.testing.latency import spread
from granville.wire.messages import Request, encode

MESSAGE = encode(Request(id="echo-0123456789", text="A request of the usual size, and nothing done about it."))
RECEIVE_BYTES = 65_536

app = cyclopts.App(version_flags=[])


async def _echo(stream: trio.SocketStream) -> None:
    """Started by: serve_listeners. Ends when: the client closes. Cancelled by: the server's end."""
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def _serve(path: str) -> None:
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(path)
    listening.listen(64)
    print("ready", flush=True)
    await trio.serve_listeners(_echo, [trio.SocketListener(listening)])


async def _client(path: str, turns: Iterator[int], latencies: list[float]) -> None:
    """Started by: _drive, one a connection. Ends when: no turn is left. Cancelled by: the nursery of _drive."""
    with trio.socket.socket(trio.socket.AF_UNIX) as connection:
        await connection.connect(path)
        for _ in turns:
            began = time.monotonic()
            await connection.send(MESSAGE)
            missing = len(MESSAGE)
            while missing:
                missing -= len(await connection.recv(RECEIVE_BYTES))
            latencies.append(time.monotonic() - began)


async def _drive(path: str, connections: int, messages: int) -> list[float]:
    latencies: list[float] = []
    turns = iter(range(messages))
    async with trio.open_nursery() as nursery:  # the connections' common life
        for _ in range(connections):
            nursery.start_soon(_client, path, turns, latencies)
    return latencies


@app.command
def serve(path: str) -> None:
    """Echo until killed."""
    trio.run(_serve, path)


@app.command
def drive(path: str, *, connections: int = 1, messages: int = 10_000) -> None:
    """Send and await so many messages in all, and print the rate and the p50 as JSON."""
    began = time.monotonic()
    latencies = trio.run(_drive, path, connections, messages)
    seconds = time.monotonic() - began
    of_all = spread(latencies)
    assert of_all is not None, "at least one message was sent"
    print(json.dumps({"per_s": messages / seconds, "p50_ms": of_all.p50}))


if __name__ == "__main__":
    app()
