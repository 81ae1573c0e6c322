"""A model whose jobs take turns: a step is the next piece of one job, and then it is the next job's turn.

A job is a generator. What it yields are the events of a bounded piece of work; its last event is an Output. It is
closed when it is cancelled, so that a `finally` in it frees what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Generic, TypeVar

from granville.hosting.interface import (
    Capabilities,
    DriverError,
    Event,
    Failed,
    ModelInfo,
    Output,
    Speak,
    Task,
    Transcribe,
)

T = TypeVar("T", bound=Transcribe | Speak)
Job = Generator[list[Event], None, None]


class JobError(Exception):
    """A job cannot be done. `error` is a wire error's name, the message a sentence for whoever sent it."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error
        self.message = message


class TurnModel(Generic[T]):
    """A loaded model that takes one kind of task."""

    def __init__(
        self,
        kind: type[T],
        begin: Callable[[T], Job],
        *,
        serves: str,
        slots: int,
        info: ModelInfo,
        stats: Callable[[], Mapping[str, int | float | str]],
        close: Callable[[], None],
        interruptible: bool,
    ) -> None:
        """`serves`: the model type. `begin` makes a job of a task without working yet; `stats` is for any thread."""
        self.slots = slots
        self.info = info
        self.capabilities = Capabilities(
            types=frozenset({serves}), messages=False, sampling=False, interruptible=interruptible
        )
        self._kind = kind
        self._begin = begin
        self._stats = stats
        self._close = close
        self._jobs: dict[str, Job] = {}
        """In the order of their turns."""
        self._refused: list[Event] = []

    def submit(self, request: Task) -> None:
        if not isinstance(request, self._kind):
            what = type(request).__name__
            self._refused.append(Failed(request.id, "unsupported", f"this model takes no {what}"))
            return
        if request.id in self._jobs:
            raise DriverError(f"a job with the id {request.id} is here already")
        if len(self._jobs) >= self.slots:
            raise DriverError(f"all {self.slots} slots are taken")
        self._jobs[request.id] = self._begin(request)

    def step(self, prefill_ms: float | None) -> list[Event]:
        events, self._refused = self._refused, []
        if self._jobs:
            id = next(iter(self._jobs))
            events += self._advance(id, self._jobs.pop(id))
        return events

    def _advance(self, id: str, job: Job) -> list[Event]:
        try:
            events = next(job)
        except JobError as error:
            return [Failed(id, error.error, error.message)]
        if not (events and isinstance(events[-1], Output)):
            self._jobs[id] = job
        else:
            job.close()
        return events

    def cancel(self, id: str) -> None:
        self._refused = [event for event in self._refused if event.id != id]
        job = self._jobs.pop(id, None)
        if job is not None:
            job.close()

    def park(self, id: str) -> None:
        """Not done, as the capabilities say."""

    def resume(self, id: str) -> None:
        raise DriverError("this model parks no jobs")

    def limit_cache(self, kv_ram_bytes: int) -> None:
        """Nothing is kept from one job to the next."""

    def stats(self) -> Mapping[str, int | float | str]:
        return self._stats()

    def interrupt(self) -> None:
        """A piece of work is one call of the backend, which cannot be cut short."""

    def close(self) -> None:
        for id in list(self._jobs):
            self.cancel(id)
        self._close()
