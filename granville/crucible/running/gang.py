"""Tasks of which the first failure ends the others, and is the one that counts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVarTuple

import trio

from granville.crucible.running.failures import StepFailed
from granville.errors import GranvilleError

Ts = TypeVarTuple("Ts")


class Gang:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.failure: StepFailed | GranvilleError | None = None

    def start(self, task: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        self._nursery.start_soon(self._run, lambda: task(*args))

    async def _run(self, task: Callable[[], Awaitable[None]]) -> None:
        """Started by: `start`. Ends when: the task has. Cancelled by: another one's failure, or whatever ends the
        gang."""
        try:
            await task()
        except (StepFailed, GranvilleError) as failure:
            if self.failure is None:
                self.failure = failure
                self._nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_gang() -> AsyncIterator[Gang]:
    """Its end waits for all that were started in it, and raises the first failure, as it is."""
    async with trio.open_nursery() as nursery:  # for the steps that run side by side in one place of a run
        gang = Gang(nursery)
        yield gang
    if gang.failure is not None:
        raise gang.failure
