"""A conversation that is too long for its model, without its oldest turns. Drivers have it from the interface."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence, Sized
from typing import Protocol, TypeVar

ANSWER_SHARE = 4
"""Room for an answer is `max_tokens`, but no more than one part in so many of the context."""
KEPT_SHARE = 2
"""Of what is left for the prompt, a conversation that has to be shortened keeps one part in so many: the turns after
this one have room, and read only what is new."""


class Said(Protocol):
    @property
    def role(self) -> str: ...


Turn = TypeVar("Turn", bound=Said)
Prompt = TypeVar("Prompt", bound=Sized)


def shortened(
    messages: Sequence[Turn], read: Callable[[Sequence[Turn]], Prompt], *, context_size: int, max_tokens: int
) -> tuple[Prompt, int]:
    """The prompt of a conversation as `read` makes it, without the fewest of the oldest turns that have to go, and how
    many those are. What is left begins with a user's turn, so that questions go with their answers. System messages and
    all from the newest user's turn on stay; where they leave little room the prompt is longer, and perhaps too long."""
    limit = context_size - min(max_tokens, context_size // ANSWER_SHARE)
    prompt = read(messages)
    if len(prompt) <= limit:
        return prompt, 0
    turns = [number for number, message in enumerate(messages) if message.role != "system"]
    cuts = [count for count, number in enumerate(turns) if messages[number].role == "user" and count > 0]

    def without(count: int) -> Prompt:
        gone = {*turns[:count]}
        return read([message for number, message in enumerate(messages) if number not in gone])

    for most in (limit // KEPT_SHARE, limit, context_size - 1):
        cut = bisect_left(cuts, True, key=lambda count: len(without(count)) <= most)
        if cut < len(cuts):
            return without(cuts[cut]), cuts[cut]
    return prompt, 0
