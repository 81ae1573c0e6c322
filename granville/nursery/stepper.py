"""A model's own thread: one `to_thread` call for the model's whole life, in which its steps run.

Backends keep state by calling thread (OpenMP a team of threads, a GPU its context), and a hop into a thread at
every step would cost a tenth of a millisecond; so commands go in by a queue and events come out in batches.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

import trio

from granville.hosting.floor import Floor, StepEvent, as_lost
from granville.hosting.interface import DriverError, Model, Task
from granville.hosting.isolated import IsolatedModel

log = logging.getLogger(__name__)


EventSink = Callable[[list[StepEvent]], None]


class Stepper(Protocol):
    """What runs a model's loop. Calls are made in the Trio thread and return at once."""

    async def run(self, on_events: EventSink, *, task_status: trio.TaskStatus[Model]) -> None:
        """Load the model, start with it, and step it until `close`. Raises DriverError when the model is lost."""

    def submit(self, request: Task) -> None: ...

    def cancel(self, id: str) -> None: ...

    def park(self, id: str) -> None: ...

    def resume(self, id: str) -> None: ...

    def limit_cache(self, kv_ram_bytes: int) -> None: ...

    def stats(self) -> Mapping[str, int | float | str]:
        """The model's own figures; empty while there is none."""

    def close(self) -> None: ...

    def stalled_s(self) -> float:
        """Seconds since the last step ended, while there is something to step; 0 when idle."""


Command = Callable[[Floor], list[StepEvent]]


def _look(floor: Floor) -> list[StepEvent]:
    """Raises DriverError when the process that an isolated model lives in has ended."""
    assert isinstance(floor.model, IsolatedModel)
    floor.model.check()
    return []


class Commanded(ABC):
    """A stepper's calls as commands on the floor, for whoever runs the model's loop; None ends it."""

    @abstractmethod
    def _command(self, command: Command | None) -> None: ...

    def submit(self, request: Task) -> None:
        self._command(lambda floor: floor.submit(request))

    def cancel(self, id: str) -> None:
        self._command(lambda floor: floor.cancel(id))

    def park(self, id: str) -> None:
        self._command(lambda floor: floor.park(id))

    def resume(self, id: str) -> None:
        self._command(lambda floor: floor.resume(id))

    def limit_cache(self, kv_ram_bytes: int) -> None:
        self._command(lambda floor: floor.limit_cache(kv_ram_bytes))

    def close(self) -> None:
        self._command(None)


class ThreadStepper(Commanded):
    """The production stepper. The thread is abandoned, not awaited, if it hangs when the kernel ends."""

    def __init__(
        self,
        load: Callable[[], Model],
        prefill_ms: float | None = None,
        *,
        give_up: Callable[[], object] | None = None,
    ) -> None:
        """`give_up`: how to end a driver's call that is left behind, where that can be done."""
        self._load = load
        self._prefill_ms = prefill_ms
        self._give_up = give_up
        self._commands: SimpleQueue[list[Command | None]] = SimpleQueue()
        self._unsent: list[Command | None] = []
        self._fill = trio.Event()
        self._model: Model | None = None
        self._busy = False
        self._progress_at = time.monotonic()
        self.alive = False

    async def run(
        self, on_events: EventSink, *, task_status: trio.TaskStatus[Model] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Started by: the model's inference task. Ends when: `close`, or the model is lost. Cancelled by: the
        kernel's end, which leaves a hung driver call behind."""
        token = trio.lowlevel.current_trio_token()
        batches: deque[list[StepEvent]] = deque()

        def deliver() -> None:
            events: list[StepEvent] = []
            while batches:
                events += batches.popleft()
            if events:
                on_events(events)

        def post(events: list[StepEvent]) -> None:
            batches.append(events)
            token.run_sync_soon(deliver, idempotent=True)

        def started(model: Model) -> None:
            task_status.started(model)

        try:
            # Beside the one long call, a task that hands it what it is to do.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._feed)
                await trio.to_thread.run_sync(
                    partial(self._live, post, lambda model: token.run_sync_soon(started, model)),
                    abandon_on_cancel=True,
                    limiter=trio.CapacityLimiter(1),
                )
                nursery.cancel_scope.cancel()
        finally:
            deliver()
            self.close()
            self._hand_over()
            if self.alive and self._give_up is not None:
                self._give_up()

    def close(self) -> None:
        super().close()
        model = self._model  # its thread may take it away at any time
        if model is not None:
            model.interrupt()

    def stats(self) -> Mapping[str, int | float | str]:
        model = self._model
        return {} if model is None else model.stats()

    def stalled_s(self) -> float:
        model = self._model
        if isinstance(model, IsolatedModel):
            return model.silent_s()
        return time.monotonic() - self._progress_at if self._busy else 0.0

    def _command(self, command: Command | None) -> None:
        self._unsent.append(command)
        self._fill.set()

    async def _feed(self) -> None:
        """Started by: `run`. Ends when: cancelled. Cancelled by: the end of the thread. Commands of one tick of the
        Trio loop go to the thread together: waking it for each would cost more than the commands do."""
        while True:
            await self._fill.wait()
            self._fill = trio.Event()
            await trio.lowlevel.checkpoint()  # whoever is ready to run now may add to it
            self._hand_over()

    def _hand_over(self) -> None:
        commands, self._unsent = self._unsent, []
        self._commands.put(commands)
        model = self._model
        if isinstance(model, IsolatedModel):
            model.wake()  # its step only waits for another process's, and commands go ahead

    def _live(self, post: EventSink, ready: Callable[[Model], object]) -> None:
        self.alive = True
        try:
            model = self._load()
            self._model = model
            if isinstance(model, IsolatedModel):
                model.when_ended(lambda: self._commands.put([_look]))
            try:
                ready(model)
                self._loop(Floor(model, self._prefill_ms), post)
            finally:
                self._model = None
                model.close()
        except DriverError:
            raise
        except Exception as error:
            raise as_lost(error) from error
        finally:
            self._busy = False
            self.alive = False

    def _loop(self, floor: Floor, post: EventSink) -> None:
        while True:
            self._busy = bool(floor.running)
            events: list[StepEvent] = []
            for command in self._waiting_commands(block=not floor.running):
                if command is None:
                    return
                self._progress_at, self._busy = time.monotonic(), True
                events += command(floor)
            if floor.running:
                events += floor.step()
                self._progress_at = time.monotonic()
            if events:
                post(events)

    def _waiting_commands(self, *, block: bool) -> list[Command | None]:
        commands = list(self._commands.get()) if block else []
        try:
            while True:
                commands += self._commands.get_nowait()
        except Empty:
            return commands
