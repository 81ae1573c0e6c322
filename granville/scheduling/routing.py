"""Which model a job goes to, where its request leaves the choice.

`least-busy` binds late: whoever has a free slot first takes the best job. `round-robin` binds when the job is accepted,
in strict rotation over the ready models of its type. Whatever the strategy, a job is bound early where not every
model of its type can do what it asks.
"""

from __future__ import annotations

from granville.config import Strategy
from granville.errors import GranvilleError
from granville.scheduling.job import Job
from granville.scheduling.roster import ModelEntry, Roster
from granville.wire.messages import Request


class Router:
    def __init__(self, roster: Roster, strategy: Strategy = "least-busy") -> None:
        self.roster = roster
        self.strategy = strategy
        self._last: dict[str, str] = {}
        """By type, the model that had the last turn."""

    def choose(self, request: Request) -> str | None:
        """The one model that a new job is bound to, beyond what its request names; None for any that can take it.
        Raises what Roster.able raises."""
        able = self.roster.able(request)
        if request.model_id is not None:
            return None
        ready = [entry for entry in able if entry.state == "ready"]
        if self.strategy == "round-robin":
            # With none ready the job stays unbound, and the first that comes back takes it.
            return self._next(request.model_type, ready) if ready else self._any(able, request)
        return self._any(able, request)

    def move(self, job: Job, gone: str) -> str | None:
        """Where a waiting job goes whose model has failed or is unloaded: another ready one, or, while that is not
        there, None for any or `gone` itself. Raises what Roster.able raises when none will ever take it."""
        able = [entry for entry in self.roster.able(job.request) if entry.id != gone]
        if any(entry.state == "ready" for entry in able):
            return self.choose(job.request)
        return gone if gone in self.roster and self.roster[gone].serves else self._any(able, job.request)

    def _any(self, able: list[ModelEntry], request: Request) -> str | None:
        """None when every model of the type will do, else the least busy of those that will, one that is known to if
        there is any."""
        if all(entry in able for entry in self.roster if entry.type == request.model_type and entry.serves):
            return None
        best = max(able, key=lambda entry: (entry.state == "ready", entry.slots > 0, entry.slots - len(entry.running)))
        return best.id

    def likely(self, request: Request, ready: list[ModelEntry]) -> ModelEntry:
        """Which of the ready models a new job would run on, if it came now; nothing changes."""
        if request.model_id is None and self.strategy == "round-robin":
            return self.roster[self._turn(request.model_type, ready)]
        return max(ready, key=lambda entry: entry.free)

    def _next(self, type: str, ready: list[ModelEntry]) -> str:
        turn = self._last[type] = self._turn(type, ready)
        return turn

    def _turn(self, type: str, ready: list[ModelEntry]) -> str:
        """The first ready model after the one that had the last turn, in the order in which they were given."""
        order = [entry.id for entry in self.roster]
        last = self._last.get(type)
        start = order.index(last) + 1 if last in order else 0
        ids = {entry.id for entry in ready}
        return next(id for id in (*order[start:], *order[:start]) if id in ids)


def can_ever_run(roster: Roster, request: Request) -> bool:
    """Whether there is still a model that could take a request which was accepted."""
    try:
        roster.able(request)
    except GranvilleError:
        return False
    return True
