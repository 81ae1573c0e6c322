"""What it is worth to say beforehand what comes: the time to the first token behind a prompt or in a session that was
kept warm, and without that."""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import trio
from msgspec.structs import replace

from benchmarks.contention import PARAGRAPH
from benchmarks.peers import Peers
from benchmarks.processes import BenchError, granville
from benchmarks.report import Figure, Goal
from benchmarks.settings import Settings
from granville.client import ChatMessage, Client, Request, connect, new_id
from granville.testing.latency import percentile

PARAGRAPHS = 12
"""About 560 tokens."""
ANSWER_TOKENS = 16
TTL_MS = 60_000
STREAM_TOKENS = 400
QUIET_TOKENS = 60
AHEAD, FOR_A_REQUEST = "read ahead", "for a request"
STATES = ("on disk", "lost")
"""Of a session, when the daemon has been started again: its KV state is there, or only what was said."""
SUBJECTS = ("warmed", "cold")


def warm(peers: Peers, settings: Settings) -> list[Figure]:
    """A system prompt that nobody has asked behind, and sessions that were not used since the daemon's start."""
    seen: dict[str, dict[str, list[float]]] = {}
    gaps: dict[str, list[float]] = {AHEAD: [], FOR_A_REQUEST: [], "nothing": []}
    for number in range(settings.rounds):
        order = SUBJECTS if number % 2 else SUBJECTS[::-1]
        for state in STATES:
            with tempfile.TemporaryDirectory(prefix="granville-bench-warm-") as folder:
                flags = [str(peers.model), "--slots", "8", "--kv-dir", folder, *settings.driver_flags]
                with granville(flags, "granville-warm-before") as server:
                    trio.run(_talk, server.address)
                if state == "lost":
                    for path in Path(folder).rglob("*.kv"):
                        path.unlink()
                with granville(flags, "granville-warm") as server:
                    trio.run(_measure, server.address, seen, f"a session whose state is {state}", order)
                    if state == STATES[0]:
                        trio.run(_measure, server.address, seen, "behind a system prompt", order)
                        trio.run(_beside_a_stream, server.address, gaps)
    figures = [
        Figure(
            scenario=f"Said beforehand: time to first token with about {PARAGRAPHS * 47} tokens before it",
            name=name,
            unit="ms",
            values={subject: values[subject] for subject in SUBJECTS},
            goals=[] if "on disk" in name else [Goal(0.25, "at most", "cold")],
            note=f"{name[0].upper()}{name[1:]}: warm {statistics.median(values['warming']):.0f} ms after it was said.",
        ).conclude()
        for name, values in seen.items()
    ]
    return [
        *figures,
        Figure(
            scenario="Said beforehand: somebody beside who streams",
            name="the stream's gaps while a prompt of its class is read, p95",
            unit="ms",
            values=gaps,
            goals=[Goal(1.25, "at most", FOR_A_REQUEST)],
            note="Beside a stream of a higher class than its own nothing is read ahead.",
        ).conclude(),
    ]


async def _talk(address: str) -> None:
    """A first turn of each session."""
    async with connect(address) as client:
        for subject in SUBJECTS:
            await client.submit(_request(_story(subject), "What is this about?", session_id=subject))


async def _measure(address: str, seen: dict[str, dict[str, list[float]]], name: str, order: tuple[str, ...]) -> None:
    values = seen.setdefault(name, {subject: [] for subject in (*SUBJECTS, "warming")})
    async with connect(address) as client:
        await client.submit(Request(id=new_id(), text="hello", max_tokens=4))
        for subject in order:
            if "session" in name:
                request = Request(
                    id=new_id(), text="What did the keeper do?", session_id=subject, max_tokens=ANSWER_TOKENS
                )
                wish: dict[str, Any] = {"session_id": subject}
            else:
                story = _story(new_id())
                request = _request(story, "What did the keeper do?")
                wish = {"messages": [story]}
            if subject == "warmed":
                began = time.perf_counter()
                reply = await client.warm(**wish, ttl_ms=TTL_MS, wait=True)
                values["warming"].append(1000 * (time.perf_counter() - began))
                if reply["state"] != "warm":
                    raise BenchError(f"{name} is not warm: {reply}")
            values[subject].append(1000 * await _first_token_s(client, request))


async def _beside_a_stream(address: str, gaps: dict[str, list[float]]) -> None:
    """How long a stream waits between two tokens while a prompt is read, ahead and for a request, and before that."""

    async def stream(client: Client, times: list[float], begun: trio.Event) -> None:
        request = Request(id=new_id(), text="Tell me of the sea.", max_tokens=STREAM_TOKENS)
        async with client.stream(request) as answer:
            async for _ in answer:
                times.append(time.perf_counter())
                if len(times) == QUIET_TOKENS:
                    begun.set()

    async with connect(address) as client:
        for name in (AHEAD, FOR_A_REQUEST):
            times: list[float] = []
            begun = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream, client, times, begun)
                await begun.wait()
                asked, story = time.perf_counter(), _story(new_id())
                if name == AHEAD:
                    await client.warm(messages=[story], ttl_ms=TTL_MS, priority="normal", wait=True)
                else:
                    await client.submit(replace(_request(story, "What is this about?"), max_tokens=1))
                read = time.perf_counter()
            gaps[name].append(percentile(_waits_ms(times, asked, read), 95))
        gaps["nothing"].append(percentile(_waits_ms(times, 0.0, asked), 95))


def _waits_ms(times: list[float], begin: float, end: float) -> list[float]:
    return sorted(1000 * (after - before) for before, after in pairwise(times) if begin <= before and after <= end)


async def _first_token_s(client: Client, request: Request) -> float:
    began = time.perf_counter()
    first = None
    async with client.stream(request) as answer:
        async for _ in answer:
            if first is None:
                first = time.perf_counter() - began
    if first is None:
        raise BenchError(f"{request.id} had no answer")
    return first


def _story(name: str) -> ChatMessage:
    return ChatMessage("system", f"Story {name}. {PARAGRAPH * PARAGRAPHS}")


def _request(story: ChatMessage, question: str, session_id: str | None = None) -> Request:
    messages = [story, ChatMessage("user", question)]
    return Request(id=new_id(), messages=messages, session_id=session_id, max_tokens=ANSWER_TOKENS)
