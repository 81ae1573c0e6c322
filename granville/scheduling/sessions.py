"""Conversations: what was said, and whose turn it is to go on. Turns of a session run one after another."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from granville.scheduling.job import Job
from granville.wire.messages import ChatMessage

MAX_SESSIONS = 1024
"""Sessions without a job that are kept; the one that has been quiet for longest goes first."""

History = tuple[ChatMessage, ...]


@dataclass(eq=False, slots=True)
class _Session:
    history: History
    turns: deque[Job] = field(default_factory=deque)
    """Jobs in order of arrival; the first has the floor."""


class Sessions:
    """The histories by session id. A turn enters the history when it ends well, and leaves no trace otherwise."""

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self.max_sessions = max_sessions
        self._live: dict[str, _Session] = {}
        """Sessions that have a job."""
        self._quiet: OrderedDict[str, History] = OrderedDict()
        """The others, in the order in which they fell quiet."""

    def arrive(self, job: Job) -> bool:
        """Take note of a new job; False when it has to wait for an earlier turn of its session."""
        id = job.request.session_id
        if id is None:
            return True
        session = self._live.get(id)
        if session is None:
            session = self._live[id] = _Session(self._quiet.pop(id, ()))
        session.turns.append(job)
        return len(session.turns) == 1

    def conversation(self, job: Job) -> History:
        """All that the model is to read: the session's history, then the request's own turn. `messages` replaces
        the history, `reset_cache` empties it."""
        request = job.request
        if request.messages is not None:
            return tuple(request.messages)
        turn = ChatMessage("user", request.text or "")
        if request.session_id is None or request.reset_cache:
            return (turn,)
        return (*self._live[request.session_id].history, turn)

    def leave(self, job: Job, answer: str | None) -> Job | None:
        """A job of a session has ended, with its answer or without one. Returns the turn that has the floor now,
        if that has changed."""
        id = job.request.session_id
        if id is None:
            return None
        session = self._live[id]
        had_floor = session.turns[0] is job
        if answer is not None:
            session.history = (*self.conversation(job), ChatMessage("assistant", answer))
        session.turns.remove(job)
        if session.turns:
            return session.turns[0] if had_floor else None
        del self._live[id]
        if session.history:
            self._quiet[id] = session.history
            if len(self._quiet) > self.max_sessions:
                self._quiet.popitem(last=False)
        return None
