"""Which token sequences begin alike: an index from a prompt to whatever shares the longest beginning with it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import islice
from typing import Generic, TypeVar

BLOCK_TOKENS = 32
"""Beginnings are told apart in steps of this; what is shared beyond the last whole block is compared token by token."""
MAX_NEAREST = 8

K = TypeVar("K", bound=Hashable)


def shared_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning. O(n) in comparisons of whole slices."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # they agree up to `low` and differ before `high`
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


class PrefixIndex(Generic[K]):
    """Keys by the whole blocks that their tokens begin with. Each operation costs O(n) for n tokens."""

    def __init__(self) -> None:
        self._blocks: dict[int, dict[K, None]] = {}

    def add(self, key: K, tokens: Sequence[int]) -> None:
        for block in _chain(tokens):
            self._blocks.setdefault(block, {})[key] = None

    def remove(self, key: K, tokens: Sequence[int]) -> None:
        for block in _chain(tokens):
            keys = self._blocks[block]
            del keys[key]
            if not keys:
                del self._blocks[block]

    def nearest(self, tokens: Sequence[int]) -> list[K]:
        """Up to MAX_NEAREST keys that share the most whole blocks, the newest of them; none without a whole block."""
        found: dict[K, None] = {}
        for block in _chain(tokens):
            keys = self._blocks.get(block)
            if keys is None:
                break
            found = keys
        return list(islice(reversed(found), MAX_NEAREST))[::-1]


def _chain(tokens: Sequence[int]) -> Iterator[int]:
    """A hash for each beginning of whole blocks. Two that collide cost a comparison, no more."""
    so_far = 0
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        so_far = hash((so_far, tuple(tokens[end - BLOCK_TOKENS : end])))
        yield so_far
