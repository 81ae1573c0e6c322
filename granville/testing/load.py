"""A load generator for a live daemon: `python -m granville.testing.load --clients 8 --requests 64`.

Closed loop: each client is a connection that keeps a number of requests in flight and sends the next one when
a result has come. Replies come back on the same connection. Run it in a process of its own, so that its work
is not done on the loop that is measured.
"""

from __future__ import annotations

import hashlib
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import cyclopts
import msgspec
import trio

from granville.config import DEFAULT_SOCKET
from granville.errors import ConnectionLost, GranvilleError, StartupError
from granville.testing.latency import Record, Spread, Summary, summarise
from granville.wire.framing import FrameReader
from granville.wire.messages import (
    Ack,
    Class,
    ControlReply,
    Delta,
    ErrorReply,
    Request,
    encode,
    parse_reply,
)

RECEIVE_BYTES = 65_536
MAX_REPLY_BYTES = 32 << 20
INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 + SIGINT, as a shell says it."""
DEFAULT_TEXT = "{n}: Write a long story about a lighthouse keeper."


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to send: `requests` in all, shared by `clients` connections, each with `in_flight` at a time."""

    socket: str
    make: Callable[[int], Request]
    """The n-th request. Ids must differ."""
    clients: int = 1
    requests: int = 1
    in_flight: int = 1
    first: int = 0
    """The number of the first request."""
    after_s: float = 0.0
    """How long to wait, connected, before the first request."""


async def run_load(plan: Plan) -> list[Record]:
    """Send the whole plan and return a record for each request, in the order they were sent.

    Every connection is open before the first request goes out. Raises StartupError when nobody listens, and
    ConnectionLost, in a group, when a connection that still owes answers ends.
    """
    numbers = iter(range(plan.first, plan.first + plan.requests))
    records: list[Record] = []
    connections = [await _connect(plan.socket) for _ in range(min(plan.clients, plan.requests))]
    await trio.sleep(plan.after_s)
    # One task a connection, all in step: the nursery is their common life and ends with the last of them.
    async with trio.open_nursery() as nursery:
        for connection in connections:
            nursery.start_soon(_client, connection, plan, numbers, records)
    return records


async def _connect(path: str) -> trio.socket.SocketType:
    connection = trio.socket.socket(trio.socket.AF_UNIX)
    try:
        await connection.connect(path)
    except OSError as error:
        connection.close()
        raise StartupError(f"no daemon is listening on {path}: {error.strerror}") from None
    return connection


async def _client(
    connection: trio.socket.SocketType, plan: Plan, numbers: Iterator[int], records: list[Record]
) -> None:
    """Started by: run_load, one a connection.
    Ends when: no number is left and every answer has come.
    Cancelled by: the nursery of run_load.
    """
    reader = FrameReader(max_message_bytes=MAX_REPLY_BYTES)
    waiting: dict[str, Record] = {}
    with connection, _losses_told():
        while True:
            frames = []
            while len(waiting) < plan.in_flight and (number := next(numbers, None)) is not None:
                request = plan.make(number)
                waiting[request.id] = record = Record(id=request.id, sent=0)
                records.append(record)
                frames.append(encode(request))
                record.sent = time.monotonic()
            if frames:
                await _send_all(connection, b"".join(frames))
            if not waiting:
                return
            data = await connection.recv(RECEIVE_BYTES)
            now = time.monotonic()
            if not data:
                raise ConnectionLost(f"the daemon closed a connection with {len(waiting)} answers outstanding")
            for value in reader.feed(data):
                _take(value, waiting, now)


@contextmanager
def _losses_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConnectionLost(f"the connection to the daemon broke: {error.strerror}") from error


async def _send_all(connection: trio.socket.SocketType, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await connection.send(view) :]


def _take(value: object, waiting: dict[str, Record], now: float) -> None:
    """Note one reply in its record; a result or an error ends it. Raises GranvilleError for a stray reply."""
    match parse_reply(value):
        case Delta(id=id):
            waiting[id].pieces.append(now)
        case Ack(id=id):
            waiting[id].accepted = now
        case ErrorReply(id=str(id)) as error if id in waiting:
            record = waiting.pop(id)
            record.error, record.ended = error.error, now
        case ErrorReply() as error:
            raise error.exception()
        case ControlReply():
            raise GranvilleError("a control reply came, and no control operation was sent")
        case result:
            record = waiting.pop(result.id)
            record.ended = now
            record.prompt_tokens = result.usage.prompt_tokens
            record.cached_tokens = result.usage.cached_tokens
            record.completion_tokens = result.usage.completion_tokens
            record.digest = hashlib.sha256(result.text.encode()).hexdigest()[:16]


def request_maker(
    *,
    text: str = DEFAULT_TEXT,
    max_tokens: tuple[int, ...] = (64,),
    stream: bool = True,
    temperature: float = 0.0,
    priority: Class | None = None,
    model_id: str | None = None,
) -> Callable[[int], Request]:
    """Requests of one kind. `{n}` in the text becomes the number in six digits, so that no two prompts are
    the same and all have about as many tokens; `max_tokens` is gone through in turn."""
    run = uuid.uuid4().hex[:8]

    def make(number: int) -> Request:
        return Request(
            id=f"load-{run}-{number}",
            text=text.replace("{n}", f"{number:06d}"),
            max_tokens=max_tokens[number % len(max_tokens)],
            stream=stream,
            temperature=temperature,
            priority=priority,
            model_id=model_id,
            client="load",
        )

    return make


def describe(summary: Summary) -> Iterator[str]:
    """The summary as lines for a terminal."""
    yield (
        f"{summary.requests} requests in {summary.duration_s:.2f} s: "
        f"{summary.requests_per_s:.1f} requests/s, {summary.tokens_per_s:.1f} tokens/s"
    )
    for error, number in sorted(summary.failed.items()):
        yield f"  {number} failed: {error}"
    yield f"  {'ms':20} {'p50':>10} {'p90':>10} {'p99':>10} {'max':>10}"
    rows: list[tuple[str, Spread | None]] = [
        ("ACK", summary.accepted_ms),
        ("first token", summary.first_ms),
        ("inter-token", summary.gap_ms),
        ("whole answer", summary.total_ms),
    ]
    for name, row in rows:
        if row is not None:
            yield f"  {name:20} {row.p50:10.2f} {row.p90:10.2f} {row.p99:10.2f} {row.max:10.2f}"


app = cyclopts.App(name="python -m granville.testing.load", version_flags=[])
Positive = Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1))]

Lengths = Annotated[tuple[int, ...], cyclopts.Parameter(consume_multiple=True, negative=())]


@app.default
def load(
    *,
    socket: Annotated[str, cyclopts.Parameter(alias="-s", env_var="GRANVILLE_SOCKET")] = DEFAULT_SOCKET,
    clients: Positive = 8,
    requests: Positive = 32,
    in_flight: Positive = 1,
    first: int = 0,
    text: str = DEFAULT_TEXT,
    max_tokens: Lengths = (64,),
    stream: bool = True,
    temperature: float = 0.0,
    priority: Class | None = None,
    model: str | None = None,
    after: float = 0.0,
    json: bool = False,
) -> int:
    """Send requests to a running daemon and print rates and latencies. The exit code is 1 when one failed.

    Parameters
    ----------
    socket
        The daemon's Unix socket.
    clients
        Connections.
    requests
        Requests in all.
    in_flight
        Requests a connection has outstanding at a time.
    first
        The number of the first request: another one makes other prompts.
    text
        The prompt; `{n}` in it becomes the request's number.
    max_tokens
        The answers' length; several are taken in turn (`--max-tokens 16 112`).
    stream
        Ask for the answer as it is made.
    temperature
        0 is greedy.
    priority
        The class of every request.
    model
        The model's id; any model when not given.
    after
        Seconds to wait, connected, before the first request.
    json
        Print one JSON object with the summary and every request's record in place of the table.
    """
    make = request_maker(
        text=text,
        max_tokens=max_tokens,
        stream=stream,
        temperature=temperature,
        priority=priority,
        model_id=model,
    )
    plan = Plan(
        socket=socket, make=make, clients=clients, requests=requests, in_flight=in_flight, first=first, after_s=after
    )
    records = trio.run(run_load, plan)
    summary = summarise(records)
    if json:
        print(msgspec.json.encode({"summary": summary, "records": records}).decode())
    else:
        print("\n".join(describe(summary)))
    return 1 if summary.failed else 0


if __name__ == "__main__":
    try:
        app()
    except* GranvilleError as errors:
        sys.exit(f"load: {errors.exceptions[0]}")
    except* KeyboardInterrupt:
        sys.exit(INTERRUPTED)
