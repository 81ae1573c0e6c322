"""Who may ask Granville next: a bound on the requests in flight, shared fairly by the runs.

One run with 10 000 items neither fills Granville's queue nor keeps another run waiting behind it: places that become
free go round the runs that wait, those of a higher class first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from granville.wire.messages import Class

MAX_IN_FLIGHT = 256
"""Requests of one runner at Granville; a queue there holds 1000 unless told otherwise."""
RANKS: dict[Class, int] = {"critical": 0, "high": 1, "normal": 2, "low": 3}
PATIENCE = 4
"""Every so many places go to whoever has waited longest, whatever its class: nobody waits for ever."""


class _Waiter:
    def __init__(self, number: int) -> None:
        self.number = number
        self.may_go = trio.Event()


class Gate:
    def __init__(self, places: int = MAX_IN_FLIGHT) -> None:
        self._free = places
        self._queues: list[OrderedDict[str, deque[_Waiter]]] = [OrderedDict() for _ in RANKS]
        self._arrivals = 0
        self._given = 0

    @asynccontextmanager
    async def place(self, run_id: str, priority: Class) -> AsyncIterator[None]:
        await self._enter(run_id, RANKS[priority])
        try:
            yield
        finally:
            self._free += 1
            self._give()

    async def _enter(self, run_id: str, rank: int) -> None:
        if self._free and not any(self._queues):
            await trio.lowlevel.checkpoint_if_cancelled()
            self._free -= 1
            return
        self._arrivals += 1
        waiter = _Waiter(self._arrivals)
        queue = self._queues[rank]
        queue.setdefault(run_id, deque()).append(waiter)
        try:
            await waiter.may_go.wait()
        except trio.Cancelled:
            self._withdraw(queue, run_id, waiter)
            raise

    def _withdraw(self, queue: OrderedDict[str, deque[_Waiter]], run_id: str, waiter: _Waiter) -> None:
        if waiter.may_go.is_set():  # given its place and cancelled in the same instant
            self._free += 1
            self._give()
            return
        queue[run_id].remove(waiter)
        if not queue[run_id]:
            del queue[run_id]

    def _give(self) -> None:
        while self._free and any(self._queues):
            self._given += 1
            queue = next(queue for queue in self._queues if queue)
            run_id = next(iter(queue))
            if self._given % PATIENCE == 0:
                queue, run_id = min(
                    ((queue, run_id) for queue in self._queues for run_id in queue),
                    key=lambda at: at[0][at[1]][0].number,
                )
            waiter = queue[run_id].popleft()
            if queue[run_id]:
                queue.move_to_end(run_id)
            else:
                del queue[run_id]
            self._free -= 1
            waiter.may_go.set()
