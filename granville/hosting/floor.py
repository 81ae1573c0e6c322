"""A model's jobs, and what each command does to them: shared by every loop that steps a model, in whatever process."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from granville.hosting.interface import (
    Audio,
    DriverError,
    Event,
    Failed,
    Finished,
    Model,
    Output,
    Parked,
    Task,
    Token,
    Warm,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Released:
    """A cancelled job has left its slot."""

    id: str


StepEvent = Event | Released


class Floor:
    """The jobs that a model is at work on, and what a command does to them; shared by every kind of stepper."""

    def __init__(self, model: Model, prefill_ms: float | None) -> None:
        self.model = model
        self.prefill_ms = prefill_ms
        self.running: set[str] = set()
        self.parked: set[str] = set()
        self.warm: set[str] = set()
        """What the model reads ahead or keeps."""

    def submit(self, request: Task) -> list[StepEvent]:
        self.running.add(request.id)
        if isinstance(request, Warm):
            self.warm.add(request.id)
        self.model.submit(request)
        return []

    def cancel(self, id: str) -> list[StepEvent]:
        if id in self.parked:
            self.parked.discard(id)
            self.model.cancel(id)
            return []
        was_running, was_warm = id in self.running, id in self.warm
        if was_running or was_warm:
            self.model.cancel(id)
        self.running.discard(id)
        self.warm.discard(id)
        return [Released(id)] if was_running and not was_warm else []

    def park(self, id: str) -> list[StepEvent]:
        if id in self.running:
            self.model.park(id)
        return []

    def resume(self, id: str) -> list[StepEvent]:
        if id in self.parked:
            self.parked.discard(id)
            self.running.add(id)
            self.model.resume(id)
        return []

    def limit_cache(self, kv_ram_bytes: int) -> list[StepEvent]:
        self.model.limit_cache(kv_ram_bytes)
        return []

    def step(self) -> list[StepEvent]:
        events: list[StepEvent] = list(self.model.step(self.prefill_ms))
        for event in events:
            if isinstance(event, Finished | Output | Failed | Parked):
                self.running.discard(event.id)
                if isinstance(event, Parked):
                    self.parked.add(event.id)
                elif isinstance(event, Failed):
                    self.warm.discard(event.id)
            elif not isinstance(event, Token | Audio):
                raise DriverError(f"the driver's step returned a {type(event).__name__}, which is no event")
        return events


def as_lost(error: Exception) -> DriverError:
    """Whatever a driver raised, as the DriverError that says so; what was none is logged with its trace."""
    if isinstance(error, DriverError):
        return error
    log.error("driver raised error=%s", type(error).__name__, exc_info=error)
    return DriverError(f"the driver raised {type(error).__name__}: {error}")
