"""A job: an accepted request, from its ACK to its one terminal message."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from granville.errors import GranvilleError
from granville.scheduling.priority import Priority
from granville.wire.messages import ErrorReply, Request, Result, error_reply

State = Literal["waiting", "running", "parked", "delivering"]
ClientKey = tuple[str, str]
"""Who shares fairly with whom: (user, program)."""
Lane = tuple[Literal["model", "type"], str]
"""Where a job may run: on one model, by id, or on any of a type."""


class Delivery(Protocol):
    """Where a job's messages go. Both calls return at once."""

    def delta(self, text: str) -> None: ...

    def finish(self, reply: Result | ErrorReply) -> None: ...


@dataclass(eq=False, slots=True)
class Job:
    request: Request
    client: ClientKey
    arrival: int
    """Position in the order of arrival, over all jobs of the daemon."""
    accepted_at: float
    deadline: float
    cost: float
    """Tokens that it is expected to take: bytes / 4 + max_tokens."""
    priority: Priority
    """The class that it was given; ageing does not change it."""
    delivery: Delivery
    state: State = "waiting"
    model_id: str | None = None
    started_at: float | None = None
    charged_in: Priority | None = None
    """The class that it was taken from the backlog in, where its client was charged for it: after ageing a higher one
    than its own."""
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    """What the model has said so far, as it sampled it."""
    bound_to: str | None = None
    """The one model that may run it, though the request names none: its session's, its turn's by round-robin, or the
    one where it is parked."""
    lent: Priority = Priority.LOW
    """The class of a later turn of its session, which waits for it to end."""
    parks: int = 0
    """How often it was taken off its slot for more urgent work."""
    streams: bool = False
    """A repeat of its request has asked for deltas, though the first one had not."""
    losses: int = 0
    """How often its model failed while it ran."""
    outcome: Result | ErrorReply | None = None

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def urgency(self) -> Priority:
        """The class that it is ordered in at first, and whose slots it may take: its own, or one that was lent."""
        return min(self.priority, self.lent)

    @property
    def lane(self) -> Lane:
        model_id = self.request.model_id or self.bound_to
        if model_id is not None:
            return ("model", model_id)
        return ("type", self.request.model_type)

    def decide(self, outcome: Result | GranvilleError) -> bool:
        """Settle the job's terminal message. The first decision wins: False means that there was one already."""
        if self.outcome is not None:
            return False
        self.outcome = error_reply(self.id, outcome) if isinstance(outcome, GranvilleError) else outcome
        self.state = "delivering"
        self.delivery.finish(self.outcome)
        return True


def estimated_cost(request_bytes: int, max_tokens: int) -> float:
    """Four bytes of text are about a token."""
    return request_bytes / 4 + max_tokens
