"""Server-sent events: a response that goes on until its source ends, the client has gone, or the daemon ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import trio
from starlette.types import Receive, Scope, Send

KEEP_ALIVE_S = 15.0
"""A stream that has nothing to say says so; a client that has gone is found out by that too."""
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


def server_event(name: str, data: Any, id: str | None = None) -> bytes:
    """One event as the format has it (html.spec.whatwg.org, 9.2): JSON has no line ends, so `data` is one line."""
    number = b"" if id is None else f"id: {id}\n".encode()
    return number + f"event: {name}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


class EventStream:
    """An ASGI response of what `source` gives, an async generator of whole events."""

    def __init__(self, source: AsyncGenerator[bytes, None]) -> None:
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        give, take = trio.open_memory_channel[bytes](0)
        # A nursery for the source and the client's end beside what is sent.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._feed, give)
            nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
            async with take:
                while True:
                    part = b": nothing new\n\n"
                    with trio.move_on_after(KEEP_ALIVE_S):
                        try:
                            part = await take.receive()
                        except trio.EndOfChannel:
                            break
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()

    async def _feed(self, give: trio.MemorySendChannel[bytes]) -> None:
        """Started by: the response. Ends when: the source does. Cancelled by: the client that has gone."""
        async with give, aclosing(self._source):
            async for part in self._source:
                await give.send(part)


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    """Started by: the response. Ends when: the client has gone. Cancelled by: the response's end."""
    while (await receive())["type"] != "http.disconnect":
        await trio.lowlevel.checkpoint()
    scope.cancel()
