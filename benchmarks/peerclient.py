"""The load generator's twin for llama-server: the same closed loop over /v1/chat/completions, the same records.

    .venv/bin/python benchmarks/peerclient.py --port 8080 --clients 8 --requests 64

It shares the cores with the server that it measures, as the load generator for the daemon does; so the answers'
event streams are cut by hand, at a cost a token like the other's, where an HTTP library would take several times
as much. It reads what llama-server sends (one `data:` line an event, never split over two chunks) and refuses
anything else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cyclopts
import msgspec
import trio
from msgspec import Struct

from granville.testing.latency import Record, summarise
from granville.testing.load import DEFAULT_TEXT, Lengths, Positive, describe

RECEIVE_BYTES = 65_536


class Content(Struct, frozen=True):
    content: str | None = None


class Choice(Struct, frozen=True):
    delta: Content
    finish_reason: str | None = None


class CachedTokens(Struct, frozen=True):
    cached_tokens: int = 0


class Usage(Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: CachedTokens = CachedTokens()


class Event(Struct, frozen=True):
    choices: list[Choice] = []
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPlan:
    port: int
    clients: int
    requests: int
    text: str
    max_tokens: tuple[int, ...]
    first: int
    cache_prompt: bool
    after_s: float


_decode = msgspec.json.Decoder(Event).decode


async def run_load(plan: PeerPlan) -> list[Record]:
    numbers = iter(range(plan.first, plan.first + plan.requests))
    records: list[Record] = []
    await trio.sleep(plan.after_s)
    # One task a client: the nursery is their common life and ends with the last of them.
    async with trio.open_nursery() as nursery:
        for _ in range(min(plan.clients, plan.requests)):
            nursery.start_soon(_client, plan, numbers, records)
    return records


async def _client(plan: PeerPlan, numbers: Iterator[int], records: list[Record]) -> None:
    """Started by: run_load, one a client.
    Ends when: no number is left.
    Cancelled by: the nursery of run_load.
    """
    for number in numbers:
        record = Record(id=str(number), sent=time.monotonic())
        records.append(record)
        with trio.socket.socket() as connection:
            connection.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
            await connection.connect(("127.0.0.1", plan.port))
            request = memoryview(_request(plan, number))
            while request:
                request = request[await connection.send(request) :]
            await _read_answer(connection, record)
        record.ended = time.monotonic()


def _request(plan: PeerPlan, number: int) -> bytes:
    """Greedy by `top_k` 1 alone, the cheapest way to say so: the server's other samplers would cost it time."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": plan.text.replace("{n}", f"{number:06d}")}],
        "max_tokens": plan.max_tokens[number % len(plan.max_tokens)],
        "temperature": 0,
        "top_k": 1,
        "samplers": ["top_k"],
        "ignore_eos": False,
        "cache_prompt": plan.cache_prompt,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    content = msgspec.json.encode(body)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def _read_answer(connection: trio.socket.SocketType, record: Record) -> None:
    """Read the event stream up to its `[DONE]`. Raises RuntimeError for any other answer."""
    buffer = b""
    while True:
        data = await connection.recv(RECEIVE_BYTES)
        now = time.monotonic()
        if not data:
            raise RuntimeError(f"llama-server ended an answer early: {buffer[:500]!r}")
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            if line.startswith(b"HTTP/1.1") and b" 200 " not in line:
                raise RuntimeError(f"llama-server refused a request: {line!r}")
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]":
                return
            _take(_decode(line[6:]), record, now)


def _take(event: Event, record: Record, now: float) -> None:
    if any(choice.delta.content for choice in event.choices):
        record.pieces.append(now)
    if event.usage is not None:
        record.prompt_tokens = event.usage.prompt_tokens
        record.completion_tokens = event.usage.completion_tokens
        record.cached_tokens = event.usage.prompt_tokens_details.cached_tokens


app = cyclopts.App(version_flags=[])


@app.default
def load(
    *,
    port: int,
    clients: Positive = 8,
    requests: Positive = 32,
    first: int = 0,
    text: str = DEFAULT_TEXT,
    max_tokens: Lengths = (64,),
    cache_prompt: bool = False,
    after: float = 0.0,
    json: bool = False,
) -> None:
    """Send requests to a running llama-server and print rates and latencies."""
    plan = PeerPlan(
        port=port,
        clients=clients,
        requests=requests,
        text=text,
        max_tokens=max_tokens,
        first=first,
        cache_prompt=cache_prompt,
        after_s=after,
    )
    records = trio.run(run_load, plan)
    summary = summarise(records)
    if json:
        print(msgspec.json.encode({"summary": summary, "records": records}).decode())
    else:
        print("\n".join(describe(summary)))


if __name__ == "__main__":
    sys.exit(app())
