"""How much a run, or a workflow called by it, has done of what it may."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from granville.crucible.running.failures import BudgetExceeded
from granville.crucible.workflow.model import Limits


def spent_tokens(usage: Mapping[str, int] | None) -> int:
    """Prompt tokens that were read anew, and what was said."""
    if usage is None:
        return 0
    return (
        usage.get("prompt_tokens", 0) - usage.get("cached_tokens", 0) + usage.get("completion_tokens", 0)
    )  # fmt: skip


def added(usage: Mapping[str, int] | None, more: Mapping[str, int] | None) -> dict[str, int] | None:
    if usage is None or more is None:
        return dict(usage or more or {}) or None
    return {name: usage.get(name, 0) + more.get(name, 0) for name in {**usage, **more}}


class Budget:
    """`outer` is that of the workflow that calls this one: what is done counts in both."""

    def __init__(
        self, limits: Limits, *, name: str, outer: Budget | None = None, steps: int = 0, tokens: int = 0
    ) -> None:
        self.limits = limits
        self.name = name
        self.outer = outer
        self.steps = steps
        self.tokens = tokens

    def start(self, key: str) -> None:
        """One more step is to start. Raises BudgetExceeded when there is none left, and then nothing has changed."""
        for one in self._all():
            if one.steps >= one.limits.steps:
                raise BudgetExceeded(
                    f"{one.name} has started {one.steps} steps, as many as limits.steps allows; {key} was the next. "
                    "Raise it, or bound what repeats"
                )
            if one.limits.tokens is not None and one.tokens >= one.limits.tokens:
                raise BudgetExceeded(
                    f"{one.name} has used {one.tokens} tokens of the {one.limits.tokens} that limits.tokens allows; "
                    f"{key} was the next. Raise it, or ask for less"
                )
        for one in self._all():
            one.steps += 1

    def spend(self, usage: Mapping[str, int] | None) -> None:
        for one in self._all():
            one.tokens += spent_tokens(usage)

    def _all(self) -> Iterable[Budget]:
        one: Budget | None = self
        while one is not None:
            yield one
            one = one.outer
