"""What is wrong with a workflow: each problem with its place, all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from granville.errors import GranvilleError

MAX_PROBLEMS = 100
"""That are told of one workflow."""

Path = tuple[str | int, ...]
"""Of a field, by the names of the YAML form: ("steps", 0, "retry", "attempts")."""


@dataclass(frozen=True, slots=True)
class Problem:
    message: str
    """What is wrong and what would be right, with the field in front."""
    file: str = ""
    line: int | None = None
    """From 1; None where there is no text, as in a workflow that was made in Python."""
    column: int | None = None
    """From 1, in characters."""

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part not in ("", None))
        return f"{place}: {self.message}" if place else self.message


class WorkflowError(GranvilleError):
    """A workflow is wrong. Nothing of it has been run."""

    error = "bad_workflow"
    code = 422

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = in_order(problems)
        more = len(self.problems) - 1
        super().__init__(f"{self.problems[0]}{f'; and {more} more' if more else ''}")


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Without doubles, as they stand in the file, and no more than MAX_PROBLEMS of them."""
    once = dict.fromkeys(problems)
    ordered = sorted(once, key=lambda one: (one.file, one.line or 0, one.column or 0))
    return tuple(ordered[:MAX_PROBLEMS])


def listed(words: Sequence[str], last: str = "and") -> str:
    """`a`, `b` and `c`."""
    quoted = [f"`{word}`" for word in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"
