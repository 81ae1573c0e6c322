"""Runs whose messages go to a callback: kept beside the journal until they are delivered, so that a daemon that comes
back still delivers them. A crash between the delivery and its note delivers once more."""

from __future__ import annotations

import logging
import os
from contextlib import aclosing
from pathlib import Path

import msgspec
import trio

from granville.crucible.daemon.desk import Desk
from granville.crucible.daemon.following import end_of, events_of
from granville.crucible.messages import event_map
from granville.doors.address import parse_callback
from granville.doors.senders import Line, Senders
from granville.errors import GranvilleError, StartupError
from granville.wire.messages import encode

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 64 << 20


class Due(msgspec.Struct, frozen=True):
    callback: str
    stream: bool = False


class Deliveries:
    def __init__(self, desk: Desk, senders: Senders, path: Path) -> None:
        self._desk = desk
        self._senders = senders
        self._path = path
        self._due: dict[str, Due] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._writing = trio.Lock()

    async def load(self) -> None:
        """Go on with what an earlier daemon has left. Raises StartupError for a file that cannot be read."""
        try:
            data = await trio.to_thread.run_sync(_read, self._path)
            self._due = msgspec.json.decode(data, type=dict[str, Due])
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise StartupError(f"{self._path}: callbacks that are due cannot be read: {error}; remove it") from None
        for id, due in self._due.items():
            self._begin(id, due)

    async def add(self, id: str, callback: str, *, stream: bool) -> None:
        """On the disk when this returns. A newer callback of a run takes the place of the one before."""
        self._due[id] = due = Due(callback, stream)
        await self._note()
        if id in self._scopes:
            self._scopes[id].cancel()
        self._begin(id, due)

    def _begin(self, id: str, due: Due) -> None:
        scope = self._scopes[id] = trio.CancelScope()
        self._desk.nursery.start_soon(self._deliver, id, due, scope)

    async def _deliver(self, id: str, due: Due, scope: trio.CancelScope) -> None:
        """Started by: `add`, or `load`. Ends when: the run's end is delivered, or given up. Cancelled by: a newer
        callback, and the daemon's end."""
        with scope, self._desk.telling():
            is_over = True
            try:
                is_over = await self._send_all(id, due)
            except GranvilleError as error:
                log.warning("undelivered id=%s callback=%s problem=%s", id, due.callback, error.message)
            except Exception:
                log.exception("undelivered id=%s callback=%s", id, due.callback)
            # A newer callback may have taken its place by now, and that one is still due.
            if is_over and self._due.get(id) is due:
                del self._due[id]
                await self._note_if_possible()
        if self._scopes.get(id) is scope:
            del self._scopes[id]

    async def _note_if_possible(self) -> None:
        """That less is due. If it cannot be written a daemon that comes back delivers once more."""
        try:
            await self._note()
        except OSError as error:
            log.warning("callbacks that are due not written file=%s error=%s", self._path, error)

    async def _send_all(self, id: str, due: Due) -> bool:
        """Whether nothing is due any more: else it goes on when the daemon is back, with the run."""
        line = Line(self._senders, parse_callback(due.callback), id)
        try:
            reached = True
            async with aclosing(events_of(self._desk, id, stream=due.stream)) as events:
                async for event in events:
                    # What is not taken is not sent again; the end is tried all the same.
                    reached = reached and await line.send(encode(event_map(event)))
            if self._desk.is_closing and not await self._has_ended(id):
                return False
            if await line.send(await end_of(self._desk, id)):
                self._desk.counters.delivered += 1
            else:
                self._desk.counters.undelivered += 1
            return True
        finally:
            await line.hang_up()

    async def _has_ended(self, id: str) -> bool:
        return (await self._desk.record(id)).state in ("finished", "failed", "cancelled")

    async def _note(self) -> None:
        """What is due now, in one step: the file is the old one or the new one."""
        async with self._writing:
            data = msgspec.json.encode(self._due)
            await trio.to_thread.run_sync(_replace, self._path, data)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
    return data


def _replace(path: Path, data: bytes) -> None:
    beside = path.with_name(f"{path.name}.new")
    with open(beside, "wb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, 0o600)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
