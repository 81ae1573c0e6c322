"""Ranks the requests that ask for it (`ranked` without a `priority`) before they may run."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import trio

from granville.scheduling.job import Job
from granville.scheduling.memory import KEEPS_STATES
from granville.scheduling.priority import Priority
from granville.scheduling.ranking import LABELS, SAMPLES, calibration, choose, prompt, text_to_rank

if TYPE_CHECKING:
    from granville.nursery.desk import Desk
    from granville.nursery.inference import Inference

log = logging.getLogger(__name__)

SAMPLE_S = 30.0
"""A model that takes longer for a sample does not rank."""
CALIBRATION_PAUSE_S = 1.0
"""Once a request has asked to be ranked, a sample waits for so long that the model has no job; until then for as long
as it takes."""


@dataclass(slots=True)
class Ranks:
    """Since the daemon started."""

    ranked: int = 0
    late: int = 0
    """Not ranked within `rank_ms`, and normal."""
    unranked: int = 0
    """Normal because no model could rank, or it failed."""
    last_ms: float | None = None
    """How long the last one that was ranked was held for it."""


class Ranking:
    """A job that is to be ranked is held in the backlog for `rank_ms` at most. Its model is one of type `ranker`,
    otherwise the least busy one that generates; both only once they are calibrated."""

    def __init__(self, desk: Desk) -> None:
        self.ranks = Ranks()
        self._desk = desk
        self._rankers: dict[str, tuple[float, ...]] = {}
        """What calibration found out about the models that can rank now, by id."""
        self._waiting: deque[Job] = deque()
        self._to_calibrate: list[Inference] = []
        self._asked_for = False
        """Whether any request has asked to be ranked so far."""
        self._pauses: set[trio.CancelScope] = set()
        """Of calibrations that wait until their model has no job."""
        self._wake = trio.Event()

    def consider(self, job: Job) -> None:
        """Hold a new job until it is ranked, if it asks for that and some model can."""
        request = job.request
        if not request.ranked or request.priority is not None:
            return
        if not self._asked_for:
            self._asked_for = True
            for pause in self._pauses:
                pause.deadline = trio.current_time() + CALIBRATION_PAUSE_S
        if self._model() is None or not self._desk.config.rank_ms or len(self._waiting) >= self._desk.backlog.limit:
            self.ranks.unranked += 1
            return
        self._desk.backlog.hold(job)
        self._waiting.append(job)
        self._wake.set()

    def model_ready(self, model: Inference) -> None:
        """A model was loaded, for the first time or again: its scores have to be learnt before they mean something.
        That takes about a thousand tokens of prefill, in time that nobody else wants while nobody asks for ranks."""
        entry = model.entry
        self._rankers.pop(entry.id, None)
        if self._desk.config.rank_ms and "score" in entry.features and entry.type in KEEPS_STATES:
            self._to_calibrate.append(model)
            self._wake.set()

    def status(self) -> dict[str, Any]:
        model = self._model()
        return {"model": None if model is None else model.entry.id, **asdict(self.ranks)}

    async def run(self) -> None:
        """Started by: the kernel. Ends when: cancelled. Cancelled by: the kernel's end; what is still held then is
        ended by the desk as any waiting job."""
        async with trio.open_nursery() as nursery:  # one task a model that is calibrated, beside the ranking
            while True:
                while self._to_calibrate:
                    nursery.start_soon(self._calibrate, self._to_calibrate.pop())
                if self._waiting:
                    await self._rank(self._waiting.popleft())
                else:
                    await self._wake.wait()
                    self._wake = trio.Event()

    async def _rank(self, job: Job) -> None:
        """All wait equally long, so that none behind this one is late before it. Whatever fails, the job goes on."""
        priority: Priority | None = None
        try:
            with trio.move_on_at(job.accepted_at + self._desk.config.rank_ms / 1000) as scope:
                priority = await self._ask(job)
        except Exception as error:  # noqa: BLE001 - told by its name: its message may quote the text
            log.error("ranking failed error=%s", type(error).__name__)
        if job not in self._desk.backlog:
            return
        if priority is not None:
            self.ranks.ranked += 1
            self.ranks.last_ms = round(1000 * (trio.current_time() - job.accepted_at), 3)
            self._desk.admission.reclass(job, priority, trio.current_time())
        elif scope.cancelled_caught:
            self.ranks.late += 1
        else:
            self.ranks.unranked += 1
        self._desk.channel.release(job)
        self._desk.channel.dispatch()

    async def _ask(self, job: Job) -> Priority | None:
        model = self._model()
        if model is None or job not in self._desk.backlog:
            return None
        offsets = self._rankers[model.entry.id]
        scores = await model.score(prompt(text_to_rank(job.request)), LABELS)
        return None if scores is None else choose(scores, offsets)

    async def _calibrate(self, model: Inference) -> None:
        """Started by: `run`, when a model was loaded. Ends when: the model has scored the samples, or cannot, or takes
        too long for one. Cancelled by: the kernel's end."""
        scores: list[list[float]] = []
        for text in SAMPLES:
            await self._pause(model)
            values: list[float] | None = None
            with trio.move_on_after(SAMPLE_S):
                values = await model.score(prompt(text), LABELS)
            if values is None or len(values) != len(LABELS):
                break
            scores.append(values)
        if len(scores) == len(SAMPLES) and model.entry.state == "ready":
            self._rankers[model.entry.id] = calibration(scores)
            log.info("ranker ready model=%s", model.entry.id)
        elif model.entry.state == "ready":
            log.warning("model does not rank model=%s", model.entry.id)

    async def _pause(self, model: Inference) -> None:
        """Until the model has no job; no longer than CALIBRATION_PAUSE_S where ranks are wanted."""
        with trio.move_on_after(CALIBRATION_PAUSE_S if self._asked_for else float("inf")) as scope:
            self._pauses.add(scope)
            try:
                await model.emptied()
            finally:
                self._pauses.discard(scope)

    def _model(self) -> Inference | None:
        able = [m for m in self._desk.models if m.entry.id in self._rankers and m.entry.state == "ready"]
        return min(able, key=lambda m: (m.entry.type != "ranker", len(m.entry.running)), default=None)
