"""Jobs as the core sees them, without a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from granville.scheduling.job import Job
from granville.scheduling.priority import Priority
from granville.wire.messages import Class, ErrorReply, Request, Result

_numbers: Iterator[int] = count(1)


class Outbox:
    """A delivery that keeps what it is given."""

    def __init__(self) -> None:
        self.texts: list[str | bytes] = []
        self.replies: list[Result | ErrorReply] = []

    def delta(self, delta: str | bytes) -> None:
        self.texts.append(delta)

    def finish(self, reply: Result | ErrorReply) -> None:
        self.replies.append(reply)


def make_job(
    *,
    client: str = "a",
    priority: Class = "normal",
    cost: float = 1.0,
    deadline: float = 300.0,
    accepted_at: float = 0.0,
    model_id: str | None = None,
    session_id: str | None = None,
    request: Request | None = None,
) -> Job:
    arrival = next(_numbers)
    if request is None:
        request = Request(
            id=f"job-{arrival}", text="hello", priority=priority, model_id=model_id, session_id=session_id
        )
    return Job(
        request=request,
        client=("1000", client),
        arrival=arrival,
        accepted_at=accepted_at,
        deadline=deadline,
        cost=cost,
        priority=Priority.of(request.priority),
        delivery=Outbox(),
    )
