"""Conversations: what was said, by which model, and whose turn it is to go on. Turns of a session run one by one."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from granville.scheduling.job import Job

MAX_MEMORY_BYTES = 64 << 20
"""Transcripts that are kept in memory only: tokens count four bytes each."""


@dataclass(frozen=True, slots=True)
class Turn:
    role: str
    content: str
    token_ids: tuple[int, ...] = ()
    """Of an answer: as it was sampled. Text does not always become the same tokens again."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """A session between two turns."""

    turns: tuple[Turn, ...] = ()
    model_id: str | None = None
    """The model that has the last word, whose tokens they are and which holds its KV state."""

    @property
    def size(self) -> int:
        return sum(len(turn.content) + 4 * len(turn.token_ids) for turn in self.turns)


class Transcripts(Protocol):
    """Where sessions are kept while no turn of theirs is here. Bounded: the quiet for longest go first."""

    def load(self, id: str) -> Transcript | None: ...

    def save(self, id: str, transcript: Transcript, kept: int) -> None:
        """The session as it is now, the first `kept` turns of it as they were saved before."""

    def forget(self, id: str) -> None: ...

    def __len__(self) -> int: ...


class MemoryTranscripts:
    def __init__(self, max_sessions: int, max_bytes: int = MAX_MEMORY_BYTES) -> None:
        self._max_sessions = max_sessions
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, Transcript] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def load(self, id: str) -> Transcript | None:
        return self._kept.get(id)

    def save(self, id: str, transcript: Transcript, kept: int) -> None:
        self.forget(id)
        self._kept[id] = transcript
        self._bytes += transcript.size
        while self._kept and (len(self._kept) > self._max_sessions or self._bytes > self._max_bytes):
            self.forget(next(iter(self._kept)))

    def forget(self, id: str) -> None:
        transcript = self._kept.pop(id, None)
        if transcript is not None:
            self._bytes -= transcript.size


@dataclass(eq=False, slots=True)
class _Session:
    transcript: Transcript
    turns: deque[Job] = field(default_factory=deque)
    """Jobs in order of arrival; the first has the floor."""


class Sessions:
    """A turn enters its session's transcript when it ends well, and leaves no trace otherwise."""

    def __init__(self, transcripts: Transcripts) -> None:
        self._transcripts = transcripts
        self._live: dict[str, _Session] = {}
        """Sessions that have a job."""

    def __len__(self) -> int:
        return len(self._transcripts)

    def known(self, id: str | None) -> Transcript | None:
        """What is known of a session between two turns, None of one that is new. A session whose first turn is still
        here has an empty transcript."""
        if id is None:
            return None
        session = self._live.get(id)
        return session.transcript if session is not None else self._transcripts.load(id)

    def at_work(self, id: str | None) -> bool:
        """Whether a turn of the session is here, so that a new one has to wait."""
        return id in self._live

    def arrive(self, job: Job) -> list[Job]:
        """Take note of a new job. The turns of its session that have to end before it may run, none most often."""
        id = job.request.session_id
        if id is None:
            return []
        session = self._live.get(id)
        if session is None:
            session = self._live[id] = _Session(self._transcripts.load(id) or Transcript())
        before = list(session.turns)
        session.turns.append(job)
        return before

    def before(self, job: Job) -> list[Job]:
        """The turns of a live job's session that came before it and have not ended."""
        id = job.request.session_id
        if id is None:
            return []
        turns = list(self._live[id].turns)
        return turns[: turns.index(job)]

    def conversation(self, job: Job, model_id: str | None) -> tuple[Turn, ...]:
        """All that the model is to read: the session's history, then the request's own turn. `messages` replaces
        the history, `reset_cache` empties it. Tokens go only to the model that they are of."""
        request = job.request
        transcript = self._live[request.session_id].transcript if request.session_id is not None else Transcript()
        if request.messages is not None:
            told = tuple(Turn(message.role, message.content) for message in request.messages)
            return _with_tokens(told, transcript.turns) if model_id == transcript.model_id else told
        turn = Turn("user", request.text or "")
        if request.session_id is None or request.reset_cache:
            return (turn,)
        return (*_as_read_by(model_id, transcript), turn)

    def history(self, id: str, model_id: str) -> tuple[Turn, ...]:
        """All that was said in a session between two turns, as a model reads it; nothing of one that is not known."""
        return _as_read_by(model_id, self.known(id) or Transcript())

    def leave(self, job: Job, answer: Turn | None, dropped_turns: int = 0) -> Job | None:
        """A job of a session has ended, with its answer or without one; so many of the oldest turns were left out for
        it, and are forgotten. Returns the turn that has the floor now, if that has changed."""
        id = job.request.session_id
        if id is None:
            return None
        session = self._live[id]
        had_floor = session.turns[0] is job
        if answer is not None:
            before = session.transcript.turns
            turns = (*without_oldest(self.conversation(job, job.model_id), dropped_turns), answer)
            kept = next((i for i, (old, new) in enumerate(zip(before, turns, strict=False)) if old != new), len(before))
            session.transcript = Transcript(turns, job.model_id)
            self._transcripts.save(id, session.transcript, min(kept, len(turns)))
        session.turns.remove(job)
        if session.turns:
            return session.turns[0] if had_floor else None
        del self._live[id]
        return None


def _as_read_by(model_id: str | None, transcript: Transcript) -> tuple[Turn, ...]:
    """Tokens go only to the model that they are of."""
    if model_id == transcript.model_id:
        return transcript.turns
    return tuple(replace(said, token_ids=()) for said in transcript.turns)


class Spoken(Protocol):
    @property
    def role(self) -> str: ...


S = TypeVar("S", bound=Spoken)


def without_oldest(turns: Iterable[S], count: int) -> list[S]:
    """A conversation without so many of its oldest turns; system messages do not count, and stay."""
    kept: list[S] = []
    for turn in turns:
        if count > 0 and turn.role != "system":
            count -= 1
        else:
            kept.append(turn)
    return kept


def _with_tokens(told: tuple[Turn, ...], known: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """A history as a client tells it, with the tokens of those answers in it that are known from here."""
    tokens: dict[tuple[str, str], deque[tuple[int, ...]]] = {}
    for turn in known:  # in their order, for two answers may read the same
        if turn.token_ids:
            tokens.setdefault((turn.role, turn.content), deque()).append(turn.token_ids)

    def said(turn: Turn) -> tuple[int, ...]:
        left = tokens.get((turn.role, turn.content), deque([()]))
        return left.popleft() if len(left) > 1 else left[0]

    return tuple(replace(turn, token_ids=said(turn)) for turn in told)
