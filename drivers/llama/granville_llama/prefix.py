"""What empty slots still hold of the prompts that were read there: the next prompt need not be read from its start.

Only tokens of prompts are kept, not of answers: reading in pieces of any size gives the same cache bit for bit, but a
token that was generated was computed alone, and what follows it would come to depend on that.
"""

from __future__ import annotations

from collections.abc import Iterable

MIN_SHARED_TOKENS = 8
"""Less is not worth choosing a slot for."""


class Leftovers:
    def __init__(self, slots: int) -> None:
        self._tokens: list[list[int]] = [[] for _ in range(slots)]

    def best(self, slots: Iterable[int], tokens: list[int]) -> int:
        """Of these slots, the one that shares the longest beginning with a prompt; the first among equals."""
        return max(slots, key=lambda slot: (self._shared(slot, tokens), -slot))

    def keep(self, slot: int, tokens: list[int]) -> None:
        self._tokens[slot] = tokens

    def take(self, slot: int, tokens: list[int]) -> int:
        """How many tokens at the beginning of a prompt the slot holds already; it is the prompt's from now on."""
        shared = self._shared(slot, tokens)
        self._tokens[slot] = []
        return shared

    def _shared(self, slot: int, tokens: list[int]) -> int:
        kept = self._tokens[slot]
        # Two tokens at least are left to read: the logits of the last are wanted, and a piece of one token is computed
        # otherwise than a longer one.
        end = min(len(kept), len(tokens) - 2)
        if end < MIN_SHARED_TOKENS or kept[:MIN_SHARED_TOKENS] != tokens[:MIN_SHARED_TOKENS]:
            return 0
        return next((i for i in range(MIN_SHARED_TOKENS, end) if kept[i] != tokens[i]), end)
