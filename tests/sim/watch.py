"""What must hold of the kernel all along: asked at each decision that it makes, at quiet moments, and at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any, ClassVar
from unittest.mock import patch

import trio

from granville.errors import DeadlineExceeded, Internal, QueueFull
from granville.hosting.interface import Embed, Generate, Rerank, Score, Task, Warm
from granville.nursery.desk import Desk
from granville.nursery.inference import MAX_PARKS, Inference
from granville.nursery.warming import MAX_WARM
from granville.scheduling.job import Job
from granville.scheduling.memory import KEEPS_STATES
from granville.scheduling.sessions import Transcript
from granville.testing.fake import FakeModel
from granville.wire.messages import Result
from tests.sim.scenario import Scenario


class Violation(BaseException):
    """Something did not hold. Not an Exception: the daemon would catch it, and go on."""

    first: ClassVar[Violation | None] = None
    """Of a run: what else goes wrong while all comes down may hide it."""


@contextmanager
def unforgiving() -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        violation = Violation(str(error))
        Violation.first = Violation.first or violation
        raise violation from error


class Watch:
    def __init__(self, scenario: Scenario, desk: Desk) -> None:
        self.scenario = scenario
        self.desk = desk
        self.accepted: dict[str, list[Job]] = defaultdict(list)
        """By the id of the request."""
        self._jobs: dict[int, Job] = {}
        self._turns: dict[str, list[Job]] = defaultdict(list)
        """Of each session, in order of arrival."""
        self._prompts: dict[int, list[tuple[str, str]]] = {}
        """All that a job's model was given to read, by role."""
        """Words that the model was given for a job, at last."""
        self._rotation: dict[str, Iterator[str]] = {}
        for name in ("accept", "end", "put_back"):
            setattr(desk, name, getattr(self, f"_{name}")(getattr(desk, name)))
        router = desk.admission.router
        router.choose = self._choose(router.choose)  # type: ignore[method-assign]

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Also at what models are given."""
        start, watch = Inference.start, self

        def started(inference: Inference, job: Job) -> None:
            if inference._desk is watch.desk:
                with unforgiving():
                    watch._starts(inference, job)
            start(inference, job)

        with patch.object(Inference, "start", started):
            yield

    def _accept(self, accept: Any) -> Any:
        def checked(request: Any, *rest: Any) -> Job:
            desk = self.desk
            waiting = self._never_started()
            known, at_work = desk.sessions.known(request.session_id), bool(self._at_work(request.session_id))
            try:
                job: Job = accept(request, *rest)
            except QueueFull as error:
                with unforgiving():
                    full = error.message.startswith("the queue is full")
                    assert not full or waiting == desk.backlog.limit, f"refused with {waiting} waiting"
                raise
            with unforgiving():
                assert waiting < desk.backlog.limit, f"accepted with {waiting} waiting"
                if self.scenario.healthy and desk.config.strategy == "round-robin" and request.model_id is None:
                    self._check_binding(job, known, at_work)
            self.accepted[job.id].append(job)
            self._jobs[job.arrival] = job
            if request.session_id is not None:
                self._turns[request.session_id].append(job)
            return job

        return checked

    def _at_work(self, id: str | None) -> list[Job]:
        return [] if id is None else [turn for turn in self._turns[id] if turn.outcome is None]

    def _check_binding(self, job: Job, known: Transcript | None, at_work: bool) -> None:
        holder = None if known is None else known.model_id
        if at_work:
            assert job.bound_to is None
        elif holder is not None and self.desk.roster[holder].type == job.request.model_type:
            assert job.bound_to == holder, "not where its session is"

    def _choose(self, choose: Any) -> Any:
        def checked(request: Any) -> Any:
            chosen = choose(request)
            with unforgiving():
                if self.scenario.healthy and self.desk.config.strategy == "round-robin" and request.model_id is None:
                    assert chosen == self._next(request.model_type), "out of turn"
            return chosen

        return checked

    def _next(self, type: str) -> str:
        if type not in self._rotation:
            self._rotation[type] = cycle([entry.id for entry in self.desk.roster if entry.type == type])
        return next(self._rotation[type])

    def _end(self, end: Any) -> Any:
        def checked(job: Job, outcome: Any) -> None:
            with unforgiving():
                if job.outcome is None:
                    assert not isinstance(outcome, Internal), outcome.message
                    if isinstance(outcome, DeadlineExceeded):
                        assert trio.current_time() >= job.deadline
                    if isinstance(outcome, Result):
                        read = _kept(self._prompts[job.arrival], job, outcome)
                        assert outcome.usage.prompt_tokens == sum(len(text.split()) for _, text in read)
            end(job, outcome)
            with unforgiving():
                assert job.outcome is not None
                assert job not in self.desk.backlog

        return checked

    def _put_back(self, put_back: Any) -> Any:
        def checked(job: Job) -> None:
            put_back(job)
            with unforgiving():
                assert job.parks <= MAX_PARKS

        return checked

    def _starts(self, inference: Inference, job: Job) -> None:
        """It goes where nobody has more room."""
        assert job.outcome is None
        assert job.lane in inference.entry.lanes
        if job.lane[0] == "type":
            free = max(entry.free for entry in self.desk.roster if job.lane in entry.lanes)
            assert max(inference.entry.free, 0) == max(free, 0), "another model has more room"

    def given(self, task: Task, *, messages: bool) -> None:
        """A model gets a task."""
        if isinstance(task, Score):
            return
        if isinstance(task, Warm):
            assert messages, "the model cannot do this"
            assert task.messages
            return
        job = self._jobs[int(task.id)]
        request = job.request
        if isinstance(task, Embed | Rerank):
            texts = task.texts if isinstance(task, Embed) else (task.query, *task.documents)
            self._prompts[job.arrival] = [("user", text) for text in texts]
            return
        assert isinstance(task, Generate)
        assert messages or (request.messages is None and request.session_id is None), "the model cannot do this"
        expected = self._conversation(job)
        assert [(said.role, said.content) for said in task.messages] == expected
        assert task.produced == tuple(job.token_ids)
        for said in task.messages:
            words = len(said.content.split())
            assert said.token_ids in ((), *([tuple(range(words))] if said.role == "assistant" else []))
        self._prompts[job.arrival] = expected

    def _conversation(self, job: Job) -> list[tuple[str, str]]:
        """The turns of its session that came before it and ended well, then its own."""
        history: list[tuple[str, str]] = []
        id = job.request.session_id
        for turn in self._turns[id] if id is not None else [job]:
            request = turn.request
            if request.messages is not None:
                read = [(message.role, message.content) for message in request.messages]
            else:
                read = [*([] if request.reset_cache else history), ("user", request.text or "")]
            if turn is job:
                return read
            assert turn.outcome is not None or job.outcome is not None, "two turns of a session at once"
            if isinstance(turn.outcome, Result):
                history = [*_kept(read, turn, turn.outcome), ("assistant", turn.outcome.text)]
        raise AssertionError("a turn that never came")

    def _never_started(self) -> int:
        """Waiting jobs that -q bounds, counted one by one."""
        return sum(
            job.state == "waiting" and not job.parks and not job.losses and job.outcome is None
            for job in self.desk.admission.jobs()
        )

    def check_quiet(self) -> None:
        """At a moment when nothing is about to happen but the end of a step."""
        desk, now = self.desk, trio.current_time()
        status = desk.status()
        assert sum(status["queue"]["by_class"].values()) == len(desk.backlog)
        for job in desk.admission.jobs():
            assert job.outcome is not None or now <= job.deadline, "over its deadline"
            assert (job in desk.backlog) == (job.outcome is None and job.state in ("waiting", "parked"))
        assert len(desk.warming._wishes) <= MAX_WARM
        for model in desk.models:
            stepper: Any = model._stepper
            if model.entry.state == "ready" and stepper._model is not None and not stepper._commands:
                kept = {wish.key for wish in desk.warming._wishes.values() if wish.model is model}
                warmth = stepper._model.warmth
                assert warmth._warm.keys() | warmth._unread.keys() <= kept, "what nobody wants is kept warm"
        held = desk.admission.held
        assert held.total_bytes <= held.budget.request_bytes_limit
        for id, turns in self._turns.items():
            at_work = [turn for turn in turns if turn.state in ("running", "parked")]
            assert len(at_work) <= 1, f"turns of {id} at once"
        for job, place in desk.backlog._places.items():
            if not place.held:
                for model in desk.models:
                    self._check_waits_rightly(job, model)

    def _check_waits_rightly(self, job: Job, model: Inference) -> None:
        entry = model.entry
        if job.lane not in entry.lanes or (entry.state != "ready" and not entry.drains):
            return
        assert entry.free <= 0, f"job {job.id} waits beside a free slot of {entry.id}"
        if "park" not in entry.features or not self.desk.may_park(model) or self.scenario.spare_bytes is not None:
            return
        for key, running in model._jobs.items():
            may_be_parked = (
                running.parks < MAX_PARKS and key not in model._leaving and running.request.model_type in KEEPS_STATES
            )
            assert not may_be_parked or running.urgency <= job.urgency, f"{job.id} waits behind {running.id}"

    def check_rest(self) -> None:
        """Everything is over: nothing is left of it."""
        desk, counters = self.desk, self.desk.counters
        backlog, admission = desk.backlog, desk.admission
        assert counters.accepted == len(self._jobs)
        ended = counters.finished + counters.failed + counters.cancelled + counters.expired
        assert counters.accepted == ended
        assert (len(admission), admission.held.total_bytes, admission._sizes) == (0, 0, {})
        assert (len(backlog), backlog._returned, dict(backlog._lanes), backlog._eligible) == (0, 0, {}, {})
        assert not any(backlog.counts().values())
        assert not any(queue._flows or queue._lanes for queue in backlog._queues.values())
        assert not any(backlog._order.values())
        assert not desk.sessions._live
        assert (desk.rescue._on_trial, desk.rescue._suspects) == (None, set())
        assert not desk.ranking._waiting
        assert (desk._undecided, desk.cork._depth, counters.senders) == (0, 0, 0)
        for model in desk.models:
            if model.stalled_s() <= desk.config.stall_s:
                self._check_model_rests(model)

    def _check_model_rests(self, model: Inference) -> None:
        desk, id = self.desk, model.entry.id
        assert not model.entry.running, f"slots of {id} leak"
        assert (model._jobs, model._parked, model._leaving) == ({}, {}, set()), id
        assert not model._scores._questions, id
        fake = getattr(model._stepper, "_model", None)
        if fake is not None and model.entry.state == "ready":
            assert (fake._running, fake._parked, fake._questions) == ({}, {}, []), id
            if model.entry.type in KEEPS_STATES and all(other.state == "ready" for other in desk.roster):
                share, step = desk.cache_share(), desk.budget.kv_ram_bytes // 16
                assert abs(fake.cache_limit - share) <= step, f"{id} keeps {fake.cache_limit}, its share is {share}"


class WatchedModel(FakeModel):
    watch: Watch

    def submit(self, request: Task) -> None:
        with unforgiving():
            self.watch.given(request, messages=self.capabilities.messages)
            super().submit(request)

    def resume(self, id: str) -> None:
        with unforgiving():
            assert len(self._running) < self.slots, "more jobs than slots"
        super().resume(id)


def _kept(read: list[tuple[str, str]], job: Job, result: Result) -> list[tuple[str, str]]:
    """Without the turns that were left out for it: there are no system messages here."""
    dropped = result.usage.dropped_turns or 0
    assert not dropped or job.request.overflow == "drop_oldest"
    kept = read[dropped:]
    assert kept[0][0] == "user"
    return kept
