"""What becomes of the jobs of a model that has failed or is unloaded: they wait, move, run again, or are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from granville.errors import DriverFailed, GranvilleError, NoModel
from granville.scheduling.job import Job
from granville.scheduling.roster import ModelEntry
from granville.scheduling.routing import can_ever_run

if TYPE_CHECKING:
    from granville.nursery.desk import Desk

MAX_LOSSES = 2
"""A job whose model failed so often while it ran is the likeliest cause."""


class Rescue:
    """Jobs that ran on a lost model run again there, one at a time: if one of them is what brings it down, it takes no
    other model and no other job with it. When the model does not come back at once, they move."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._on_trial: Job | None = None
        self._suspects: set[Job] = set()
        """They wait, held, until it is their turn."""

    def lost(self, job: Job, error: Exception) -> None:
        """A running job's model has failed. It runs again, unless its client has read some of its answer."""
        if job.outcome is not None:
            return
        job.losses += 1
        if _shown(job) or job.losses >= MAX_LOSSES or self._desk.channel.paused:
            again = ", for the second time" if job.losses >= MAX_LOSSES else ""
            self._desk.end(job, DriverFailed(f"the driver failed while this job was running{again}: {error}"))
            return
        job.bound_to = job.model_id
        _begin_anew(job)
        self._desk.backlog.put_back(job, held=self._on_trial is not None)
        if self._on_trial is None:
            self._on_trial = job
        else:
            self._suspects.add(job)

    def lost_while_parked(self, job: Job, error: Exception) -> None:
        """The model of a parked job has failed, by no fault of its own. It waits already, and begins anew."""
        if _shown(job):
            self._desk.end(job, DriverFailed(f"the driver failed while this job was parked: {error}"))
        else:
            _begin_anew(job)

    def ended(self, job: Job) -> None:
        """A job has its terminal message: the next that is on trial may run."""
        self._suspects.discard(job)
        if job is not self._on_trial:
            return
        self._on_trial = min(self._suspects, key=lambda job: (job.priority, job.arrival), default=None)
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
            elif job.request.model_id is None and job.bound_to == model_id and not (keep_suspects and job.losses):
                self._rebind(job, model_id)
        self._desk.channel.dispatch()

    def joined(self, entry: ModelEntry) -> None:
        """A model has been loaded, and now it is known what it can do: whatever waits for it and is beyond it goes to
        another, or is told."""
        for job in self._desk.backlog.waiting():
            if job not in self._desk.backlog or job.state == "parked" or job.lane not in entry.lanes:
                continue
            try:
                if entry not in self._desk.roster.able(job.request):
                    self._desk.backlog.rebind(job, self._desk.admission.router.choose(job.request))
            except GranvilleError as error:
                self._desk.end(job, error)

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
            self._desk.backlog.rebind(job, target)


def _shown(job: Job) -> bool:
    """Whether its client has read some of its answer."""
    return bool(job.text) and (job.request.stream or job.streams)


def _begin_anew(job: Job) -> None:
    job.text.clear()
    job.token_ids.clear()
    job.state, job.model_id, job.started_at = "waiting", None, None
