"""A driver under test: every call is told before it is made, so that whoever watches knows in which one it died."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from granville.errors import StartupError
from granville.hosting.interface import (
    Capabilities,
    Driver,
    DriverError,
    Embed,
    Event,
    Generate,
    Message,
    Model,
    ModelSpec,
    Rerank,
    Sampling,
    Speak,
    Task,
    Transcribe,
)
from granville.hosting.locate import find_driver
from granville.testing.conformance.checks import Fail, Skip
from granville.testing.conformance.ledger import Job, Ledger
from granville.testing.conformance.lines import About, Broke, Calling, Judged, Line, Plan, Returned
from granville.testing.sound import tone

P = ParamSpec("P")
R = TypeVar("R")

NATIVE = {
    "c1": {
        "step": "granville_driver_generate", "load": "granville_driver_load_model",
        "close": "granville_driver_unload_model",
    },
    "c2": {"close": "unload"},
}  # fmt: skip
"""What a call of a model is in a driver in C, by ABI."""
TEXT_TYPES = ("inference", "ranker")
VALUE_TYPES = ("embedding", "rerank", "stt", "tts")
TYPES = (*TEXT_TYPES, *VALUE_TYPES)
"""The types of model that there is work for here."""
TONE_S = 0.2
LOWEST_HZ, HZ_ABOVE = 200, 400
"""Of a recording; where text decides, its length does."""
PREFILL_MS = 20.0
KV_RAM_BYTES = 64 << 20
MAX_TOKENS = 16
PAUSE_S = 0.001
"""Between two steps that brought nothing and took no time."""
RUNAWAY_EVENTS = 1000
"""Over two for each token that was asked for: a job with more than that does not end."""
TRACE_LINES = 8
VOCABULARY = [
    "river",
    "lamp",
    "stone",
    "north",
    "bread",
    "paper",
    "cloud",
    "seven",
    "green",
    "harbour",
    "bridge",
    "letter",
    "quiet",
    "winter",
    "copper",
    "garden",
    "window",
    "music",
]


def words(number: int, start: int = 0) -> str:
    """A prompt of so many words, another one for each `start`."""
    size = len(VOCABULARY)
    return " ".join(VOCABULARY[(start + step * (1 + start % 5)) % size] for step in range(number))


class Rig:
    """The driver and its models, made when they are first asked for. One child process has one."""

    def __init__(self, plan: Plan, tell: Callable[[Line], None]) -> None:
        self.plan = plan
        self.tell = tell
        self.path = Path(plan.path)
        self.generates = plan.type in TEXT_TYPES
        self.samples = True
        """Whether the model that was loaded last heeds the settings of sampling."""
        self.aside = ""
        """What happens beside the calls, to be told with them."""
        self.step_ends: list[float] | None = None
        """When steps ended (`time.perf_counter`), for a check that wants to know."""
        self._driver: Driver | None = None
        self._model: Watched | None = None
        self._numbers = count(1)

    @property
    def driver(self) -> Driver:
        if self._driver is None:
            self._driver = self.find()
        return self._driver

    @property
    def model(self) -> Watched:
        """The model that checks share as long as nothing goes wrong with it."""
        if self._model is None:
            self._model = self.load()
        return self._model

    @property
    def abi(self) -> str:
        """`c1`, `c2` or `python`."""
        return str(getattr(self.driver, "abi", "python"))

    def find(self) -> Driver:
        """A new driver object."""
        return self.call("find the driver", lambda: find_driver(self.plan.driver), allowed=(StartupError,))

    def load(self, path: Path | None = None, *, allowed: tuple[type[Exception], ...] = ()) -> Watched:
        spec = ModelSpec(
            self.path if path is None else path,
            slots=self.plan.slots,
            context_size=0 if self.abi == "c1" else self.plan.context_size,
            type=self.plan.type,
            options=self.plan.options,
            kv_ram_bytes=KV_RAM_BYTES,
        )
        driver = self.driver
        model = self.call(f"load({spec.path.name})", lambda: driver.load(spec), allowed=allowed)
        return Watched(self, model)

    def let_go(self, *, close: bool = True) -> None:
        """Close the shared model; the next check has another."""
        model, self._model = self._model, None
        if model is not None and close:
            model.close()

    def call(self, name: str, function: Callable[[], R], *, allowed: tuple[type[Exception], ...] = ()) -> R:
        """Call the driver. What it raises beside `allowed` is a failure, and said with the end of its traceback."""
        return self._timed(name, function, allowed, step=False)

    def timed_step(self, function: Callable[[], R]) -> R:
        return self._timed("step()", function, (), step=True)

    def _timed(self, name: str, function: Callable[[], R], allowed: tuple[type[Exception], ...], *, step: bool) -> R:
        name = self._in_full(name)
        self.tell(Calling(name + self.aside))
        began = time.perf_counter()
        try:
            return function()
        except allowed:
            raise
        except SystemExit as error:
            raise Fail(
                f"{name} called sys.exit({error.code!r}); a driver never ends its process", trace(error)
            ) from None
        except DriverError as error:
            raise Fail(f"{name} raised DriverError: {error}", trace(error)) from None
        except Exception as error:  # noqa: BLE001  # whatever a driver raises is a finding
            raise Fail(f"{name} raised {type(error).__name__}: {error}", trace(error)) from None
        finally:
            ended = time.perf_counter()
            self.tell(Returned(ended - began if step else None))
            if step and self.step_ends is not None:
                self.step_ends.append(ended)

    def _in_full(self, call: str) -> str:
        """A call with the name of the driver's own function, where it has another one."""
        own = NATIVE.get(self.abi, {}) if self._driver is not None else {}
        native = own.get(call.partition("(")[0])
        return f"{call}, which is {native}," if native else call

    def new_id(self, word: str = "job") -> str:
        """An id that was never used."""
        return f"{word}-{next(self._numbers)}"

    def task(self, text: str, *, max_tokens: int = MAX_TOKENS, **more: Any) -> Task:
        """Work of the kind that the model does. Greedy: the same text twice gives the same answer twice."""
        id = self.new_id()
        if self.plan.type == "embedding":
            return Embed(id, (text, "a second text"))
        if self.plan.type == "rerank":
            return Rerank(id, "a question", (text, "a second document"))
        if self.plan.type == "stt":
            return Transcribe(id, tone(TONE_S, hz=LOWEST_HZ + len(text) % HZ_ABOVE))
        if self.plan.type == "tts":
            return Speak(id, text)
        sampling = Sampling(temperature=0, seed=1) if self.samples else Sampling()
        messages = more.pop("messages", (Message("user", text),))
        return Generate(id, messages, max_tokens=max_tokens, sampling=sampling, **more)

    @contextmanager
    def beside(self, what: str) -> Iterator[None]:
        """Calls in the body are told as made while something else goes on."""
        self.aside = f" {what}"
        try:
            yield
        finally:
            self.aside = ""


class Watched:
    """A model of which every call is told and every event judged."""

    def __init__(self, rig: Rig, model: Model) -> None:
        self.rig = rig
        self.raw = model
        self.ledger = Ledger(lambda rule, seen: rig.tell(Broke(rule, seen)))
        self.closed = False
        if isinstance(getattr(model, "capabilities", None), Capabilities):
            rig.samples = model.capabilities.sampling
            rig.tell(About(interruptible=bool(model.capabilities.interruptible)))

    @property
    def slots(self) -> int:
        return self.raw.slots

    @property
    def capabilities(self) -> Capabilities:
        return self.raw.capabilities

    def need(self, capability: str) -> None:
        """Skip the check where the model does not say that it can do this."""
        if not getattr(self.capabilities, capability):
            raise Skip(f"Capabilities({capability}=False): the kernel does not ask for it")

    def submit(self, task: Task) -> Job:
        job = self.ledger.submitted(task)
        self.rig.call(f"submit({task.id!r})", lambda: self.raw.submit(task))
        return job

    def step(self, prefill_ms: float | None = PREFILL_MS) -> list[Event]:
        before = self.ledger.judged
        events = self.ledger.take(self.rig.timed_step(lambda: self.raw.step(prefill_ms)))
        if self.ledger.judged > before:
            self.rig.tell(Judged(self.ledger.judged - before))
        return events

    def cancel(self, id: str) -> None:
        self.rig.call(f"cancel({id!r})", lambda: self.raw.cancel(id))
        self.ledger.cancelled(id)

    def park(self, id: str) -> None:
        self.rig.call(f"park({id!r})", lambda: self.raw.park(id))

    def resume(self, id: str) -> None:
        self.ledger.resumed(id)
        self.rig.call(f"resume({id!r})", lambda: self.raw.resume(id))

    def limit_cache(self, kv_ram_bytes: int) -> None:
        self.rig.call(f"limit_cache({kv_ram_bytes})", lambda: self.raw.limit_cache(kv_ram_bytes))

    def close(self) -> None:
        self.closed = True
        self.rig.call("close()", self.raw.close)

    def ask(self, text: str, **how: Any) -> Job:
        """One job from its start to its end."""
        return self.until_ended(self.submit(self.rig.task(text, **how)))[0]

    def until_ended(self, *jobs: Job) -> list[Job]:
        """Step until all of them have ended. Fails when one is stuck, or goes on without an end."""
        self.until(lambda: all(job.end is not None for job in jobs), *jobs)
        return list(jobs)

    def until(self, reached: Callable[[], bool], *jobs: Job) -> None:
        heard = time.monotonic()
        steps = 0
        while not reached():
            began = time.monotonic()
            events = self.step()
            steps += 1
            now = time.monotonic()
            if events:
                heard = now
            elif now - began < PAUSE_S:
                time.sleep(PAUSE_S)
            waiting = [job for job in jobs if job.end is None] or list(jobs)
            if now - heard > self.rig.plan.patience_s:
                raise Fail(
                    f"job {waiting[0].task.id!r} is stuck: {steps} steps, and no event in the last "
                    f"{self.rig.plan.patience_s:g} s ({len(waiting)} of {len(jobs)} jobs had not ended)"
                )
            for job in waiting:
                if job.events > 2 * getattr(job.task, "max_tokens", 0) + RUNAWAY_EVENTS:
                    raise Fail(f"job {job.task.id!r} goes on without an end: {job.events} events came for it")


def answered(job: Job) -> Job:
    """The job, when it has an answer. Fails where it says Failed."""
    from granville.hosting.interface import Failed

    if isinstance(job.end, Failed):
        raise Fail(f"job {job.task.id!r} ended with Failed({job.end.error!r}): {job.end.message}")
    return job


def trace(error: BaseException) -> tuple[str, ...]:
    """The end of a traceback, from where the driver begins."""
    frames = traceback.extract_tb(error.__traceback__)
    driver = [frame for frame in frames if "granville/testing/conformance" not in frame.filename.replace("\\", "/")]
    lines = "".join(traceback.format_list(driver)).splitlines()
    return tuple(line.rstrip() for line in lines[-TRACE_LINES:])
