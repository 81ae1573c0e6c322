"""Conversations of several turns, against the daemon or llama-server; prints a record a turn as JSON.

    .venv/bin/python benchmarks/talk.py --socket /tmp/granville.sock --conversations 12 --turns 4
    .venv/bin/python benchmarks/talk.py --port 8080 --conversations 12 --turns 4

To the daemon each turn is a request of the conversation's session; to llama-server, which has no sessions, the
whole conversation so far.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Awaitable, Callable

import cyclopts
import httpx
import msgspec
import trio
from msgspec import Struct

from benchmarks.peerclient import Event
from granville.client.connection import Client, connect
from granville.testing.load import Positive
from granville.wire.messages import Request

QUESTIONS = (
    "Tell me about the lighthouse at {name}.",
    "Who lived there before?",
    "What did they write in their book?",
    "How does the story end?",
    "And what came after that?",
)
ONE_REQUEST = httpx.Limits(max_keepalive_connections=0)
"""A connection each: llama.cpp's server may close one that is kept just as the next request goes out."""


class Turn(Struct, kw_only=True):
    """What a server did for one turn of one conversation."""

    conversation: int
    turn: int
    first_ms: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


Ask = Callable[[int, int, str], Awaitable[Turn]]
"""(conversation, turn, question) to what came of it."""


async def run_talk(ask: Ask, conversations: int, turns: range, name: str, minutes: float) -> list[Turn]:
    """Every conversation in a task of its own; again with other conversations until `minutes` have passed."""
    records: list[Turn] = []
    until = trio.current_time() + 60 * minutes
    number = 0
    while True:
        # All conversations at once: the nursery is the round that they have in common.
        async with trio.open_nursery() as nursery:
            for _ in range(conversations):
                nursery.start_soon(_converse, ask, number, turns, name, records)
                number += 1
        if trio.current_time() >= until:
            return records


async def _converse(ask: Ask, number: int, turns: range, name: str, records: list[Turn]) -> None:
    """Started by: run_talk, one a conversation.
    Ends when: its last turn is answered.
    Cancelled by: the nursery of run_talk.
    """
    for turn in turns:
        question = QUESTIONS[turn % len(QUESTIONS)].format(name=f"{name} {number}")
        records.append(await ask(number, turn, question))


def by_session(client: Client, name: str, max_tokens: int) -> Ask:
    async def ask(number: int, turn: int, question: str) -> Turn:
        request = Request(
            id=uuid.uuid4().hex,
            text=question,
            session_id=f"{name}-{number}",
            max_tokens=max_tokens,
            temperature=0,
        )
        began, first = time.monotonic(), None
        async with client.stream(request) as answer:
            async for _ in answer:
                first = first or time.monotonic()
            usage = answer.result.usage
        return Turn(
            conversation=number,
            turn=turn,
            first_ms=1000 * ((first or time.monotonic()) - began),
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
        )

    return ask


def by_messages(client: httpx.AsyncClient, max_tokens: int) -> Ask:
    talks: dict[int, list[dict[str, str]]] = {}

    async def ask(number: int, turn: int, question: str) -> Turn:
        messages = talks.setdefault(number, [])
        messages.append({"role": "user", "content": question})
        body = {
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
            "cache_prompt": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began, first = time.monotonic(), None
        pieces: list[str] = []
        record = Turn(conversation=number, turn=turn, first_ms=0, prompt_tokens=0, cached_tokens=0, completion_tokens=0)
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = msgspec.json.decode(line[6:], type=Event)
                pieces += [choice.delta.content for choice in event.choices if choice.delta.content]
                first = first or (time.monotonic() if pieces else None)
                if event.usage is not None:
                    record.prompt_tokens = event.usage.prompt_tokens
                    record.completion_tokens = event.usage.completion_tokens
                    record.cached_tokens = event.usage.prompt_tokens_details.cached_tokens
        messages.append({"role": "assistant", "content": "".join(pieces)})
        record.first_ms = 1000 * ((first or time.monotonic()) - began)
        return record

    return ask


app = cyclopts.App(version_flags=[])


@app.default
async def main(
    *,
    socket: str | None = None,
    port: int | None = None,
    conversations: Positive = 12,
    turns: Positive = 4,
    first_turn: int = 0,
    name: str = "Skerryvore",
    max_tokens: Positive = 32,
    minutes: float = 0.0,
) -> None:
    """Talk to the daemon on a Unix socket, or to llama-server on a port, and print the records as JSON."""
    numbers = range(first_turn, first_turn + turns)
    if socket is not None:
        async with connect(socket) as client:
            ask = by_session(client, name, max_tokens)
            records = await run_talk(ask, conversations, numbers, name, minutes)
    else:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=300, limits=ONE_REQUEST) as http:
            records = await run_talk(by_messages(http, max_tokens), conversations, numbers, name, minutes)
    print(msgspec.json.encode(records).decode())


if __name__ == "__main__":
    trio.run(app.run_async, sys.argv[1:])
