"""Any driver in a process of its own, behind the same interface: what ends that process costs the kernel a model that
is loaded again, and nothing else.

The process steps its model by itself (child.py) and says what each step brought; `step` here takes in what has come, so
the process never waits for the kernel. Commands go ahead: they are carried out between the step that runs and the next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from granville.errors import StartupError
from granville.hosting.interface import DriverError, Event, Failed, Finished, ModelSpec, Output, Parked, Task
from granville.hosting.pipe import (
    Batch,
    Cancel,
    Close,
    Limit,
    Load,
    Loaded,
    Message,
    Pace,
    Park,
    PipeError,
    Refused,
    Resume,
    events_of,
    submit,
)
from granville.hosting.process import END_S, LOOK_S, DriverProcess

PROCESS_BYTES = 32 << 20
"""Of an interpreter more, with what every driver imports, beside what the model takes."""
STEP_TIMEOUT_S = 30.0
RELEASE_S = 5.0
"""How long the call of a driver that cannot be interrupted may go on when its last job has been cancelled or has passed
its deadline."""
CLOSE_S = 10.0


class IsolatedDriver:
    """The driver that `find_driver` finds by the name, in a process for each model."""

    backend: str
    tuning_module: str
    """Both are there when the driver's models can be tuned."""

    def __init__(self, driver: str, *, step_timeout_s: float = STEP_TIMEOUT_S) -> None:
        """Starts the first process, to know what driver it is; the first model that is loaded gets it. Raises
        StartupError when there is none of this name."""
        self._driver = driver
        self.step_timeout_s = step_timeout_s
        try:
            self._spare: DriverProcess | None = DriverProcess(driver)
        except DriverError as error:
            raise StartupError(f"--driver {driver}: {error}") from None
        self._lock = threading.Lock()
        """Over `_spare`: two models may be loaded at once."""
        hello = self._spare.hello()
        self.name = hello.name
        self.version = hello.version
        self.config = hello.config or {}
        self.config_schema = hello.config_schema
        if hello.backend is not None and hello.tuning_module is not None:
            self.backend, self.tuning_module = hello.backend, hello.tuning_module

    def load(self, spec: ModelSpec) -> IsolatedModel:
        return IsolatedLoad(self, spec)()

    def close(self) -> None:
        """End the process that no model has got, if there is one."""
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.send(Close())
            spare.finish(END_S)

    def process(self) -> DriverProcess:
        """One that has the driver and no model. Raises DriverError."""
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None and spare.is_there:
            return spare
        process = DriverProcess(self._driver)
        try:
            process.hello()
        except StartupError as error:
            raise DriverError(error.message) from None
        return process


class IsolatedLoad:
    """Loads one model, again whenever it was lost."""

    def __init__(self, driver: IsolatedDriver, spec: ModelSpec, label: str = "") -> None:
        """`label`: what the lines begin with that the driver writes to its standard error."""
        self._driver = driver
        self._spec = spec
        self._label = label or driver.name
        self._process: DriverProcess | None = None

    def __call__(self) -> IsolatedModel:
        """Raises DriverError as the driver itself does, and when the process ends instead of an answer."""
        process = self._process = self._driver.process()
        process.label = self._label
        try:
            process.send(Load(self._spec))
        except PipeError as error:
            raise process.failed(f"cannot be told what to load: {error}") from None
        answer = process.next_message(None)
        if isinstance(answer, Loaded):
            return IsolatedModel(process, answer, self._driver.step_timeout_s)
        if isinstance(answer, Refused):
            process.finish(END_S)
            raise DriverError(answer.message)
        raise process.failed(f"answered a load with {type(answer).__name__}")

    def give_up(self) -> None:
        """From any thread: end the process, so that whoever waits for it goes on."""
        if self._process is not None:
            self._process.kill()


class IsolatedModel:
    """A model in another process. Calls are for the model's one thread, except `interrupt`, `stats`, `wake` and
    `silent_s`."""

    def __init__(self, process: DriverProcess, loaded: Loaded, step_timeout_s: float) -> None:
        self.slots = loaded.slots
        self.capabilities = loaded.capabilities
        self.info = loaded.info
        self.pid = process.pid
        self._process = process
        self._step_timeout_s = step_timeout_s
        self._prefill_ms: float | None = None
        self._running: set[str] = set()
        """Jobs that have not ended, as far as is known here."""
        self._cancelled: dict[str, int] = {}
        """Of whom events may still be under way: until so many commands have been carried out."""
        self._sent = 0
        self._done = 0
        """Commands, of this model's life."""
        self._events: list[Event] = []
        self._stats: dict[str, int | float | str] = {}
        self._failure: DriverError | None = None
        self._on_end: Callable[[], object] | None = None
        self._waiting_since: float | None = None
        """While something is expected of the process."""

    def submit(self, request: Task) -> None:
        try:
            message = submit(request)
            self._command(message)
        except PipeError as error:
            self._events.append(Failed(request.id, "driver_failed", f"the job cannot be passed on: {error}"))
            return
        self._running.add(request.id)
        self._expect_something()

    def step(self, prefill_ms: float | None) -> list[Event]:
        """What the process has said since, or else says next. Returns early when woken. Raises DriverError when the
        process has ended, or has made no step for too long and is therefore ended."""
        if prefill_ms != self._prefill_ms:
            self._prefill_ms = prefill_ms
            self._command(Pace(prefill_ms))
        self._process.flush()
        limit_s = self._step_timeout_s if self.capabilities.interruptible else float("inf")
        self._listen(LOOK_S if self._running and not self._events else 0.0, limit_s)
        events, self._events = self._events, []
        if self._failure is not None and self._on_end is not None:
            self._on_end()  # these are its last events: nobody may ask for more
        return events

    def cancel(self, id: str) -> None:
        """Waits for the end of the process's step when nothing else runs there: a process that hangs is not to meet
        the next job."""
        was_running = id in self._running
        self._events = [event for event in self._events if event.id != id]
        self._command(Cancel(id))
        self._cancelled[id] = number = self._sent
        self._running.discard(id)
        self._pass_by()
        if self._running or not was_running:
            return
        self._waiting_since = time.monotonic()
        limit_s = self._step_timeout_s if self.capabilities.interruptible else RELEASE_S
        while self._done < number and self._failure is None:
            self._expect_something()
            self._listen(LOOK_S, limit_s)
        self._waiting_since = None

    def park(self, id: str) -> None:
        self._command(Park(id))

    def resume(self, id: str) -> None:
        self._command(Resume(id))
        self._running.add(id)
        self._expect_something()

    def limit_cache(self, kv_ram_bytes: int) -> None:
        self._command(Limit(kv_ram_bytes))
        self._pass_by()

    def stats(self) -> Mapping[str, int | float | str]:
        """As the process said last."""
        return self._stats

    def interrupt(self) -> None:
        self._process.interrupt()
        self._process.wake()

    def wake(self) -> None:
        """From any thread: a `step` that waits returns."""
        self._process.wake()

    def when_ended(self, call: Callable[[], object]) -> None:
        """`call`, from any thread, when the process has ended, which `check` then tells."""
        self._on_end = call
        self._process.when_ended(call)

    def check(self) -> None:
        """Raises DriverError when the process has ended."""
        self._listen(0.0, float("inf"))

    def silent_s(self) -> float:
        """For how long the process has been expected to make a step and has not, in seconds."""
        since = self._waiting_since
        return 0.0 if since is None else max(0.0, time.monotonic() - max(since, self._process.heartbeat.last))

    def close(self) -> None:
        self._process.send(Close())
        self._process.finish(CLOSE_S)

    def _command(self, message: Message) -> None:
        self._process.send(message)
        self._sent += 1

    def _pass_by(self) -> None:
        """Send what can be sent and take in what is there: an idle model's answers are not to fill the pipe."""
        self._process.flush()
        self._listen(0.0, float("inf"))

    def _expect_something(self) -> None:
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()

    def _listen(self, timeout_s: float, limit_s: float) -> None:
        """Take in what comes. After a failure what came before it is given on first; then it is raised."""
        if self._failure is None:
            try:
                self._process.exchange(min(timeout_s, limit_s))
                if not self._take_in() and self.silent_s() >= limit_s:
                    raise self._process.failed(f"has made no step for {limit_s:g} s")
                if self._process.is_over:
                    raise self._process.ended()
            except DriverError as error:
                self._failure = error
        if self._failure is not None and not self._events:
            raise self._failure

    def _take_in(self) -> bool:
        """Whether anything had come."""
        came = False
        while (message := self._process.take()) is not None:
            came = True
            if isinstance(message, Refused):
                self._process.finish(END_S)
                raise DriverError(message.message)
            if not isinstance(message, Batch):
                raise self._process.failed(f"said {type(message).__name__} in the middle of its work")
            try:
                events = events_of(message)
            except PipeError as error:
                raise self._process.failed(f"sent what cannot be read: {error}") from None
            for event in events:
                if event.id in self._cancelled:
                    continue
                self._events.append(event)
                if isinstance(event, Finished | Output | Failed | Parked):
                    self._running.discard(event.id)
            self._done = message.done
            self._cancelled = {id: number for id, number in self._cancelled.items() if number > message.done}
            if message.stats is not None:
                self._stats = message.stats
        if came:
            self._waiting_since = time.monotonic() if self._running else None
        return came
