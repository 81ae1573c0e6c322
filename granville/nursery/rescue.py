"""What becomes of the jobs of a model that has failed or is unloaded: they wait, move, go on, begin anew or end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from granville.errors import DriverFailed, GranvilleError, NoModel
from granville.scheduling.job import Job
from granville.scheduling.roster import ModelEntry
from granville.scheduling.routing import can_ever_run

if TYPE_CHECKING:
    from granville.nursery.desk import Desk

log = logging.getLogger(__name__)

MAX_LOSSES = 2
"""A job whose model failed so often while it ran is the likeliest cause."""


class Rescue:
    """Jobs that ran on a lost model go on there, or begin anew, one at a time: if one of them is what brings it down,
    it takes no other model and no other job with it. When the model does not come back at once, those move whose
    clients have read nothing yet."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._on_trial: Job | None = None
        self._suspects: set[Job] = set()
        """They wait, held, until it is their turn."""

    def lost(self, job: Job, error: Exception) -> None:
        """A running job's model has failed. It goes on when the model is back, or runs again, unless its client has
        read some of its answer and the driver cannot go on from there."""
        if job.outcome is not None:
            return
        job.losses += 1
        stays = self._can_go_on(job) or not _shown(job)
        if not stays or job.losses >= MAX_LOSSES or self._desk.channel.paused:
            again = ", for the second time" if job.losses >= MAX_LOSSES else ""
            log.error("job lost job=%r client=%r model=%s losses=%d", job.id, job.client, job.model_id, job.losses)
            self._desk.end(job, DriverFailed(f"the driver failed while this job was running{again}: {error}"))
            return
        job.bound_to = job.model_id
        self._wait_again(job)
        self._desk.backlog.put_back(job, held=self._on_trial is not None)
        if self._on_trial is None:
            self._on_trial = job
        else:
            self._suspects.add(job)

    def lost_while_parked(self, job: Job, error: Exception) -> None:
        """The model of a parked job has failed, by no fault of its own. It waits already, to go on or begin anew."""
        if self._can_go_on(job) or not _shown(job):
            self._wait_again(job)
        else:
            self._desk.end(job, DriverFailed(f"the driver failed while this job was parked: {error}"))

    def _begin_anew_or_end(self, job: Job) -> None:
        """Raises DriverFailed when its client has read some of its answer."""
        if _shown(job):
            raise DriverFailed("the driver is another since it was loaded again, and cannot go on with this job")
        self._forget_answer(job)

    def _can_go_on(self, job: Job) -> bool:
        """Whether the model that it ran on takes what it has said. A text that no token stands for cannot be given."""
        roster, id = self._desk.roster, job.model_id
        return (
            bool(job.token_ids)
            and job.sound is None
            and id is not None
            and id in roster
            and "resume" in roster[id].features
        )

    def _wait_again(self, job: Job) -> None:
        if not self._can_go_on(job):
            self._forget_answer(job)
        job.state, job.model_id, job.started_at = "waiting", None, None

    def ended(self, job: Job) -> None:
        """A job has its terminal message: the next that is on trial may run."""
        self._suspects.discard(job)
        if job is self._on_trial:
            self._try_next()

    def _try_next(self) -> None:
        """Put the next suspect on trial; one whose model is away only when there is no other."""
        order = {job: (self._must_wait(job), job.priority, job.arrival) for job in self._suspects}
        self._on_trial = min(order, key=order.__getitem__, default=None)
        if self._on_trial is not None:
            self._suspects.discard(self._on_trial)
            self._desk.channel.release(self._on_trial)
            self._desk.channel.dispatch()

    def vacate(self, model_id: str, *, keep_suspects: bool = False) -> None:
        """Find another place for what waits for a model that has failed or is unloaded; tell whoever has none: those
        that named a model which will not come back, and those that no model left can serve."""
        for job in self._desk.backlog.waiting():
            if job not in self._desk.backlog or job.state == "parked":
                continue  # by what became of another; or it has begun, and ends there
            if not can_ever_run(self._desk.roster, job.request):
                self._desk.end(job, NoModel("the model that this job waited for has been unloaded"))
            elif _shown(job):
                self._stay(job, model_id)
            elif job.request.model_id is None and job.bound_to == model_id and not (keep_suspects and job.losses):
                self._rebind(job, model_id)
        if not keep_suspects:
            self._let_others_pass()
        self._desk.channel.dispatch()

    def _let_others_pass(self) -> None:
        """Whoever is on trial and has to wait for its own model holds up no suspect that another can take."""
        on_trial = self._on_trial
        if on_trial is not None and self._must_wait(on_trial) and not all(map(self._must_wait, self._suspects)):
            self._desk.backlog.hold(on_trial)
            self._suspects.add(on_trial)
            self._try_next()

    def _must_wait(self, job: Job) -> bool:
        """Whether it waits for a model that is away."""
        roster, id = self._desk.roster, job.request.model_id or job.bound_to
        away = id is not None and (id not in roster or roster[id].state != "ready")
        return away and job in self._desk.backlog

    def joined(self, entry: ModelEntry) -> None:
        """A model has been loaded, and now it is known what it can do: whatever waits for it and is beyond it goes to
        another, or is told."""
        for job in self._desk.backlog.waiting():
            if job not in self._desk.backlog or job.state == "parked" or job.lane not in entry.lanes:
                continue
            try:
                if job.token_ids and "resume" not in entry.features:
                    self._begin_anew_or_end(job)
                elif entry not in self._desk.roster.able(job.request):
                    self._desk.backlog.rebind(job, self._desk.admission.router.choose(job.request))
            except GranvilleError as error:
                self._desk.end(job, error)

    def _forget_answer(self, job: Job) -> None:
        """It begins anew. Only what no client has read."""
        job.text.clear()
        job.token_ids.clear()
        if job.sound is not None:
            self._desk.admission.grow(job, -job.sound.pcm_bytes)
            job.sound = None

    def _stay(self, job: Job, model_id: str) -> None:
        """A job that only the model which began its answer can end: it waits for that to come back."""
        roster = self._desk.roster
        if job.bound_to == model_id and not (model_id in roster and roster[model_id].serves):
            self._desk.end(job, NoModel("the model that had begun this job's answer has been unloaded"))

    def _rebind(self, job: Job, model_id: str) -> None:
        roster = self._desk.roster
        if job.request.session_id is not None and model_id in roster and roster[model_id].serves:
            return  # the model that holds the session comes back
        try:
            target = self._desk.admission.router.move(job, model_id)
        except GranvilleError as error:
            self._desk.end(job, NoModel(error.message))
            return
        if target != model_id:
            self._forget_answer(job)
            self._desk.backlog.rebind(job, target)


def _shown(job: Job) -> bool:
    """Whether its client has read some of its answer."""
    return bool(job.text or job.sound) and (job.request.stream or job.streams)
