"""Which steps of a list may start now, and what each of them sees. Pure: what has ended is told, nothing is awaited.

A frame is one list of steps in one place of a run: the workflow's own, a group's, one round of it, one item's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from granville.crucible.running.events import StepState
from granville.crucible.workflow.model import Step


@dataclass(frozen=True, slots=True)
class Ended:
    """How a step has ended, for those that read it."""

    state: StepState
    value: Any = None
    puts_out: bool = True
    """Whether its name holds the value now; otherwise it holds what it did."""
    error: str | None = None
    attempts: int = 1
    usage: dict[str, int] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """`steps.<id>`."""
        return {
            "output": self.value,
            "state": self.state,
            "error": self.error,
            "attempts": self.attempts,
            "usage": self.usage,
            "exhausted": False,
            "text": None,
            "segments": None,
            "language": None,
            **self.more,
        }


def in_order_of_turns(
    steps: Sequence[Step], session: str | None, dependencies: Mapping[str, set[str]]
) -> dict[str, set[str]]:
    """The same, and a step of a session waits for the one that is listed before it: what is said in a conversation does
    not depend on who was ready first. `session` is that of steps that name none."""
    ordered = {step.id: set(dependencies.get(step.id, ())) for step in steps}
    last: dict[str, str] = {}
    for step in steps:
        name = session if step.session is None else step.session
        if step.model_type == "inference" and name:
            if name in last:
                ordered[step.id].add(last[name])
            last[name] = step.id
    return ordered


class Frame:
    """`outer` are the names of the places around it; `start` what its own names hold before a step has put them out.

    A step sees what steps listed before it have put out, in the order of the list, whatever order they ended in: what
    it sees depends on the workflow alone, and is the same when the run is taken up again.
    """

    def __init__(
        self, steps: Sequence[Step], dependencies: Mapping[str, set[str]], outer: Mapping[str, Any], *,
        prefix: str = "", start: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.prefix = prefix
        self._steps = steps
        self._place = {step.id: place for place, step in enumerate(steps)}
        self._outer = outer
        self._start = dict(start or {})
        self._ended: list[Ended | None] = [None] * len(steps)
        self._records: dict[str, dict[str, Any]] = {}
        self._left = len(steps)
        self._waits_for = {step.id: set(dependencies.get(step.id, ())) & self._place.keys() for step in steps}
        self._readers: dict[str, list[str]] = {}
        for reader, sources in self._waits_for.items():
            for source in sources:
                self._readers.setdefault(source, []).append(reader)
        self._ready = [step for step in steps if not self._waits_for[step.id]]

    @property
    def is_done(self) -> bool:
        return not self._left

    def take_ready(self) -> list[Step]:
        """Those that may start and have not been given before, in the order of the list."""
        ready, self._ready = self._ready, []
        return sorted(ready, key=lambda step: self._place[step.id])

    def end(self, id: str, ended: Ended) -> None:
        place = self._place[id]
        assert self._ended[place] is None, f"{id} has ended twice"
        self._ended[place] = ended
        self._records[id] = ended.record()
        self._left -= 1
        for reader in self._readers.get(id, ()):
            waits_for = self._waits_for[reader]
            waits_for.discard(id)
            if not waits_for:
                self._ready.append(self._steps[self._place[reader]])

    def scope(self, step: Step | None = None) -> dict[str, Any]:
        """What a step sees; without one, what is seen when all have ended."""
        upto = len(self._steps) if step is None else self._place[step.id]
        records = dict(self._outer.get("steps", {}))
        records.update((one.id, self._records[one.id]) for one in self._steps[:upto] if one.id in self._records)
        return {**self._outer, **self.names(upto), "steps": records}

    def names(self, upto: int | None = None) -> dict[str, Any]:
        """What the steps, up to a place of the list, have put out."""
        names = dict(self._start)
        for step, ended in zip(self._steps[:upto], self._ended, strict=False):
            if ended is None:
                continue
            if ended.puts_out:
                names[step.name] = ended.value
            elif step.name not in names and step.name not in self._outer:
                names[step.name] = None
        return names

    def value(self) -> Any:
        """What the last step has put out."""
        ended = self._ended[-1]
        return None if ended is None else ended.value
