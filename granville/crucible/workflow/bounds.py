"""What an expression may cost. Work is counted, not timed, so that the same template always ends the same way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from math import isfinite
from typing import Any

from jinja2 import Undefined

from granville.errors import GranvilleError

MAX_TEMPLATE_CHARS = 256 * 1024
"""Of one string with `{{` or `{%` in it, or of one expression."""
MAX_NODES = 10_000
"""Of one template, once parsed."""
MAX_DEPTH = 64
"""Of parentheses, tags and operators in each other."""
MAX_WORK = 1_000_000
"""Units that one call of `render` or `evaluate` may spend: about a second on a slow machine."""
CHARS_PER_UNIT = 64
MAX_TEXT_CHARS = 16 << 20
MAX_RANGE = 10_000
LEAST_INTEGER, MOST_INTEGER = -(2**63), 2**64 - 1
"""What MessagePack can carry."""


class TemplateError(GranvilleError):
    """A template or an expression is wrong, or asks for too much. `reason` is the message without what it is about;
    `position` where in the string, if that is known, and `word` what to look for in it otherwise."""

    error = "bad_template"
    code = 422

    def __init__(
        self, reason: str, *, about: str | None = None, position: int | None = None, word: str | None = None
    ) -> None:
        super().__init__(f"{reason}, in {about}" if about else reason)
        self.reason = reason
        self.position = position
        self.word = word


class Work:
    """What one call has left to spend, and the names that it can see."""

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self.scope = scope
        self.left = MAX_WORK

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise TemplateError(
                f"too much work: over {MAX_WORK} steps (a loop's round, an item or {CHARS_PER_UNIT} characters is "
                "one); have a tool do it, or give it less"
            )

    def weigh(self, value: Any) -> None:
        """Spend for every item and character that `value` holds, however deep."""
        pending = [value]
        while pending:
            one = pending.pop()
            if isinstance(one, str | bytes):
                self.spend(1 + len(one) // CHARS_PER_UNIT)
            elif isinstance(one, dict):
                self.spend(1 + 2 * len(one))
                pending.extend(one)
                pending.extend(one.values())
            elif isinstance(one, list | tuple):
                self.spend(1 + len(one))
                pending.extend(one)

    def glance(self, value: Any) -> None:
        """Spend for the items of a list, not for what is in them, or for the characters of a text."""
        if isinstance(value, str | bytes):
            self.spend(1 + len(value) // CHARS_PER_UNIT)
        else:
            self.spend(1 + (len(value) if isinstance(value, list | tuple | dict) else 0))

    def counted(self, items: Iterable[Any], weight: int = 1) -> Iterator[Any]:
        for item in items:
            self.spend(weight)
            yield item


current_work: ContextVar[Work] = ContextVar("current_work")


def within_text(chars: int) -> None:
    if chars > MAX_TEXT_CHARS:
        raise TemplateError(f"a text of {chars} characters, and {MAX_TEXT_CHARS} are the most")


def within_number(value: float) -> None:
    """Raises TemplateError for what neither JSON nor MessagePack can carry."""
    if isinstance(value, int):
        if not LEAST_INTEGER <= value <= MOST_INTEGER:
            raise TemplateError("a whole number of more than 64 bits")
    elif not isfinite(value):
        raise TemplateError(f"{value} is no number that a value can hold")


def finished(value: Any, work: Work, depth: int = 0) -> Any:
    """A result in JSON's types and bytes: tuples are lists. Raises TemplateError for anything else."""
    work.spend(1)
    if depth > MAX_DEPTH:
        raise TemplateError(f"a value that is nested deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        work.spend(len(value) // CHARS_PER_UNIT)
        within_text(len(value))
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise TemplateError("a text with half a character in it (a lone surrogate)") from None
        return value
    if isinstance(value, int | float):
        within_number(value)
        return value
    if isinstance(value, bytes):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TemplateError(f"the keys of a map are texts, and {key!r} is none")
        return {key: finished(item, work, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [finished(item, work, depth + 1) for item in value]
    if isinstance(value, Undefined):
        return str(value)  # raises
    raise TemplateError(f"{type(value).__name__} is no value that a step can hold")
