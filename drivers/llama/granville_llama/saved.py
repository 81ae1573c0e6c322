"""A saved KV state, and which of many is the least valuable."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from granville_llama.binding import State
from granville_llama.kvfiles import Label
from granville_llama.prefix import shared_beginning

LONG_TOKENS = 4096
"""A token behind so many costs twice as much to read as the first one: attention looks at all before it."""
SPARE_ENTRIES = 64
GONE = -1.0


@dataclass(eq=False, slots=True)
class Saved:
    """The state of a sequence of tokens: in memory, on disk, or both."""

    label: Label
    size: int
    """Bytes in memory; those of its file until it was there."""
    state: State | None = None
    name: str | None = None
    """Its file, once it is written."""
    uses: int = 1
    value: float = 0.0
    """What its loss would cost; GONE when it is out of use."""
    written: bool = False
    """On disk, or on its way there."""
    coming: Future[State | Exception] | None = None
    """From disk."""
    key: str | bytes = field(init=False)
    """No two in use have the same one."""

    def __post_init__(self) -> None:
        self.key = self.label.key

    @property
    def in_use(self) -> bool:
        return self.value > GONE

    @property
    def worth(self) -> float:
        """What it costs to compute, per byte."""
        count = len(self.label.tokens)
        return self.uses * count * (1 + count / LONG_TOKENS) / max(1, self.size)


def saves(label: Label, tokens: list[int], session: str | None) -> int:
    """How many tokens, from the first, a state of `label` saves who wants these. More than are pure are given only to
    its own session."""
    shared = shared_beginning(tokens, label.tokens)
    return shared if session is not None and session == label.session else min(shared, label.pure)


class ByValue:
    """States by what they are worth. A value may rise while its state is in here; `add` again when it falls."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Saved]] = []
        self._orders: dict[Saved, int] = {}
        self._added = 0

    def __len__(self) -> int:
        return len(self._orders)

    def __iter__(self) -> Iterator[Saved]:
        return iter(self._orders)

    def __contains__(self, saved: Saved) -> bool:
        return saved in self._orders

    def add(self, saved: Saved) -> None:
        """O(log n)."""
        self._added += 1
        self._orders[saved] = self._added
        heapq.heappush(self._heap, (saved.value, self._added, saved))
        if len(self._heap) > 2 * len(self._orders) + SPARE_ENTRIES:
            self._heap = [(saved.value, order, saved) for saved, order in self._orders.items()]
            heapq.heapify(self._heap)

    def discard(self, saved: Saved) -> None:
        self._orders.pop(saved, None)

    def least(self) -> Saved:
        """The oldest of the least valuable. O(log n) for each whose value rose since it was looked at."""
        while True:
            value, order, saved = self._heap[0]
            if self._orders.get(saved) != order:
                heapq.heappop(self._heap)
            elif saved.value != value:
                heapq.heapreplace(self._heap, (saved.value, order, saved))
            else:
                return saved
