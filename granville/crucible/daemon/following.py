"""What whoever follows a run is sent: its events if they are wanted, and its one end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio

from granville.crucible.daemon.desk import Desk
from granville.crucible.messages import end_map
from granville.crucible.running.events import Event, RunEvent
from granville.errors import TooLarge
from granville.wire.framing import MAX_REPLY_BYTES
from granville.wire.messages import encode, error_reply


async def events_of(desk: Desk, id: str, *, stream: bool) -> AsyncGenerator[Event, None]:
    """Until the run has ended, or stopped; without `stream` none is given, and the end is waited for all the same. Of
    the end itself its terminal message tells."""
    async with aclosing(desk.events(id, deltas=stream)) as events:
        async for _, event in events:
            if stream and not (isinstance(event, RunEvent) and event.state != "running"):
                yield event


async def end_of(desk: Desk, id: str) -> bytes:
    """The terminal message."""
    record = await desk.record(id)
    end = end_map(record)
    message = await trio.to_thread.run_sync(encode, end)
    if len(message) <= MAX_REPLY_BYTES:
        return message
    large = TooLarge(
        f"{id}: the run has finished, and its outputs are {len(message)} bytes, over {MAX_REPLY_BYTES}; "
        f"HTTP has each of them at /runs/{id}/outputs/NAME"
    )
    return encode(error_reply(id, large))
