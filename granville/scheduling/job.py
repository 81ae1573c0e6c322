"""A job: an accepted request, from its ACK to its one terminal message."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from granville.errors import GranvilleError
from granville.scheduling.priority import Priority
from granville.wire.messages import ErrorReply, Request, Result, error_reply
from granville.wire.wav import Sound

State = Literal["waiting", "running", "parked", "delivering"]
ClientKey = tuple[str, str]
"""Who shares fairly with whom: (user, program)."""
Lane = tuple[Literal["model", "type"], str]
"""Where a job may run: on one model, by id, or on any of a type."""


class Delivery(Protocol):
    """Where a job's messages go. Both calls return at once."""

    def delta(self, delta: str | bytes) -> None: ...

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
    """Tokens that it is expected to take, or what counts as much: `expected_cost`."""
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
    sound: Sound | None = None
    """What the model has spoken so far."""
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
    def so_far(self) -> str | bytes:
        """Of its answer, as deltas would have told it: text, or a WAV stream."""
        return "".join(self.text) if self.sound is None else self.sound.stream()

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


TOKEN_BYTES = 4
"""Of text, about."""
SOUND_TOKEN_BYTES = 640
"""Of a recording: a model hears 50 states a second (Whisper's encoder), and a second of 16-bit samples at 16 kHz has
32 000 bytes. Files that are packed count less than they take."""


def estimated_cost(request_bytes: int, max_tokens: int) -> float:
    """Of text that is read and text that is written."""
    return request_bytes / TOKEN_BYTES + max_tokens


def expected_cost(request: Request, request_bytes: int, file_bytes: int = 0) -> float:
    """Of a request that brings so many bytes itself, and a file of so many."""
    if request.model_type == "stt":
        return max(1.0, (len(request.audio or b"") + file_bytes) / SOUND_TOKEN_BYTES)
    if request.model_type == "tts":  # what it reads it says
        return estimated_cost(request_bytes, 0) + len(request.text or "") / TOKEN_BYTES
    return estimated_cost(request_bytes, request.max_tokens)
