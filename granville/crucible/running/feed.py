"""What a run tells, kept for whoever follows it: from the start, then as it happens.

States are kept once for all readers, each of whom has a place in them; so a slow reader costs nothing and misses none.
Deltas are kept for a moment: a reader that is behind misses them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator

import trio

from granville.crucible.running.events import DeltaEvent, Event

MAX_DELTAS = 1024
MAX_STATES = 200_000
"""Of one run; the oldest half is let go then, and is in the journal."""


class Feed:
    def __init__(self) -> None:
        self._states: list[tuple[int, Event]] = []
        self._deltas: deque[tuple[int, Event]] = deque(maxlen=MAX_DELTAS)
        self._number = 0
        self._is_over = False
        self._news = trio.Event()
        self.readers = 0
        """Who want deltas now: without any, nothing needs to be streamed."""

    def tell(self, event: Event) -> None:
        self._number += 1
        if isinstance(event, DeltaEvent):
            if self.readers:
                self._deltas.append((self._number, event))
        else:
            if len(self._states) >= MAX_STATES:
                del self._states[: MAX_STATES // 2]
            self._states.append((self._number, event))
        self._wake()

    def close(self) -> None:
        """Nothing more will be told."""
        self._is_over = True
        self._wake()

    async def events(self, *, deltas: bool = True) -> AsyncGenerator[Event, None]:
        """Without `deltas` the states alone, for which no model has to stream."""
        seen = 0
        self.readers += deltas
        try:
            while True:
                await trio.lowlevel.checkpoint()
                news = self._news
                waiting = self._after(seen, deltas)
                for number, event in waiting:
                    seen = number
                    yield event
                if not waiting:
                    if self._is_over:
                        return
                    await news.wait()
        finally:
            self.readers -= deltas

    def _after(self, seen: int, deltas: bool) -> list[tuple[int, Event]]:
        states = _newer(self._states, seen)
        news = [one for one in self._deltas if one[0] > seen] if deltas else []
        return sorted([*states, *news], key=lambda one: one[0]) if news else states

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()


def _newer(numbered: list[tuple[int, Event]], seen: int) -> list[tuple[int, Event]]:
    at = len(numbered)
    while at and numbered[at - 1][0] > seen:
        at -= 1
    return numbered[at:]
