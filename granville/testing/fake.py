"""A driver without a model: it echoes its prompt word by word, at the pace and with the faults that it is told.
What it speaks it hears again (testing/sound.py).

In tests its time is Trio's (`TrioStepper`), so an hour of steps takes no time under the autojump clock; in a real
thread (`granville serve FILE -d granville.testing.fake:FakeDriver`) it sleeps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import msgspec
import trio

from granville.hosting.floor import Floor
from granville.hosting.interface import (
    Audio,
    Capabilities,
    DriverError,
    Embed,
    Event,
    Failed,
    Finished,
    FinishReason,
    Generate,
    Model,
    ModelInfo,
    ModelSpec,
    Output,
    Parked,
    Rerank,
    Score,
    Speak,
    Task,
    Token,
    Transcribe,
    Usage,
    Warm,
    shortened,
)
from granville.nursery.stepper import Command, Commanded, EventSink
from granville.testing.fake_plan import FakePlan, Fault
from granville.testing.fake_warmth import FakeWarmth
from granville.testing.sound import last_word, rate_of, said_words, spoken

__all__ = ["FakeDriver", "FakeModel", "FakePlan", "TrioStepper"]

NO_CHAT = ("embedding", "rerank", "stt", "tts")
Work = Generate | Embed | Rerank | Transcribe | Speak


@dataclass(slots=True)
class _Job:
    request: Work
    words: list[str]
    prompt_tokens: int
    dropped_turns: int = 0
    cached: int = 0
    prefilled: int = 0
    emitted: int = 0


class FakeModel:
    """`elapsed_s` is how long the last step took, or infinity for one that hangs."""

    def __init__(self, spec: ModelSpec, plan: FakePlan, count_step: Callable[[], int], *, sleeps: bool) -> None:
        self.slots = spec.slots
        self.capabilities = Capabilities(
            types=frozenset({spec.type}),
            park=plan.park,
            messages=plan.messages and spec.type not in NO_CHAT,
            score=plan.scores,
            warm=plan.warm and plan.messages and spec.type not in NO_CHAT,
            drop_oldest=plan.messages and spec.type not in NO_CHAT,
            resume=plan.resume,
        )
        context_size = spec.context_size or plan.context_size
        self.info = ModelInfo("fake", context_size, memory_bytes=0, description="echoes its prompt")
        self.elapsed_s = 0.0
        self.closed = False
        self.scored = 0
        """Questions taken up."""
        self.cache_limit = spec.kv_ram_bytes
        self._plan = plan
        self._count_step = count_step
        self._interrupted = threading.Event()
        self._sleeps = sleeps
        self._running: dict[str, _Job] = {}
        self._parked: dict[str, _Job] = {}
        self._events: list[Event] = []
        self._questions: list[Score] = []
        self.warmth = FakeWarmth(plan.prefill_token_s)

    def submit(self, request: Task) -> None:
        if isinstance(request, Warm):
            self.warmth.submit(request)
            return
        if isinstance(request, Score):
            self._questions.append(request)
            return
        assert len(self._running) < self.slots, "more jobs than slots"
        if isinstance(request, Transcribe | Speak):
            try:
                self._running[request.id] = _Job(request, said_words(request), 0)
            except ValueError as error:
                self._events.append(Failed(request.id, "bad_request", str(error)))
            return
        texts = _texts(request)
        words = _answer(request) if isinstance(request, Generate) else " ".join(texts).split()
        prompt, dropped_turns = sum(len(text.split()) for text in texts), 0
        if isinstance(request, Generate) and request.drop_oldest:
            read, dropped_turns = shortened(
                request.messages,
                lambda messages: [word for message in messages for word in message.content.split()],
                context_size=self.info.context_size,
                max_tokens=request.max_tokens,
            )
            prompt = len(read)
        if prompt >= self.info.context_size:
            text = f"the prompt has {prompt} tokens and the context {self.info.context_size}"
            self._events.append(Failed(request.id, "prompt_too_long", text))
            return
        said = len(request.produced) if isinstance(request, Generate) else 0
        cached = self.warmth.came(request) if isinstance(request, Generate) and not dropped_turns else 0
        self._running[request.id] = _Job(request, words, prompt, dropped_turns, cached, cached, emitted=said)

    def step(self, prefill_ms: float | None) -> list[Event]:
        self._interrupted.clear()
        self.elapsed_s = 0.0
        step = self._count_step()
        fault = self._plan.fault
        if fault is not None and (
            step == self._plan.fault_after_steps
            or any(self._plan.fault_word in job.words for job in self._running.values() if self._plan.fault_word)
        ):
            self._fail(fault)
        self._score()
        self._prefill(prefill_ms)
        self._decode()
        if not self._running and not self._events:
            self.elapsed_s += self.warmth.read()
        self._events += self.warmth.take()
        self._sleep()
        events, self._events = self._events, []
        return events

    def cancel(self, id: str) -> None:
        self._running.pop(id, None)
        self._parked.pop(id, None)
        self._questions = [question for question in self._questions if question.id != id]
        self.warmth.cancel(id)

    def park(self, id: str) -> None:
        if id in self._running:
            self._parked[id] = self._running.pop(id)
            self._events.append(Parked(id))

    def resume(self, id: str) -> None:
        self._running[id] = self._parked.pop(id)

    def limit_cache(self, kv_ram_bytes: int) -> None:
        self.cache_limit = kv_ram_bytes

    def stats(self) -> Mapping[str, int | float | str]:
        return {
            "running": len(self._running),
            "kv_parked_bytes": sum(job.prompt_tokens for job in self._parked.values()) * self._plan.token_bytes,
            **self.warmth.stats(),
        }

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        self.closed = True

    def _fail(self, fault: Fault) -> None:
        if fault == "raise":
            raise DriverError("the fake driver was told to fail")
        if fault == "hang":
            self.elapsed_s = float("inf")
            return
        for id in list(self._running):
            if self._plan.fault_word in self._running[id].words or self._plan.fault_word is None:
                del self._running[id]
                self._events.append(Failed(id, "driver_failed", "the fake driver was told to fail this job"))

    def _score(self) -> None:
        """One question a step."""
        if not self._questions:
            return
        question = self._questions.pop(0)
        self.scored += 1
        self.elapsed_s += self._plan.score_s
        if self._plan.score_fails:
            self._events.append(Failed(question.id, "driver_failed", "the fake driver was told to fail at scores"))
            return
        distances = [len(question.prompt) - question.prompt.rfind(label) for label in question.labels]
        self._events.append(Output(question.id, [-float(distance) for distance in distances], Usage()))

    def _prefill(self, prefill_ms: float | None) -> None:
        """Within the time given; the shortest remaining urgent prompt first."""
        left_s = float("inf") if prefill_ms is None else prefill_ms / 1000
        for job in sorted(self._running.values(), key=lambda job: getattr(job.request, "urgency", 2)):
            token_s = self._plan.prefill_token_s
            todo = job.prompt_tokens - job.prefilled
            now = todo if token_s == 0 else int(min(todo, left_s / token_s))
            job.prefilled += now
            left_s -= now * token_s
            self.elapsed_s += now * token_s

    def _decode(self) -> None:
        decoding = [job for job in self._running.values() if job.prefilled == job.prompt_tokens]
        if not decoding:
            return
        self.elapsed_s += self._plan.decode_s
        for job in decoding:
            self._emit(job, 1 if self._plan.decode_s else len(job.words) + 1)

    def _emit(self, job: _Job, count: int) -> None:
        id, request = job.request.id, job.request
        if isinstance(request, Embed | Rerank):
            del self._running[id]
            self._events.append(Output(id, _value(request), Usage(job.prompt_tokens)))
            return
        limit = request.max_tokens if isinstance(request, Generate) else len(job.words)
        upto = min(job.emitted + count, len(job.words), limit)
        words = job.words[job.emitted : upto]
        if words:
            text = (" " if job.emitted else "") + " ".join(words)
            ids = tuple(range(job.emitted, upto)) if isinstance(request, Generate) else ()
            if isinstance(request, Speak):
                self._events.append(Audio(id, spoken(text), rate_of(request)))
            else:
                self._events.append(Token(id, text, ids))
        job.emitted = upto
        if upto == limit or upto == len(job.words):
            del self._running[id]
            if not isinstance(request, Generate):
                self._events.append(Output(id, last_word(request, job.words), Usage()))
                return
            reason: FinishReason = "stop" if upto == len(job.words) else "length"
            self._events.append(Finished(id, reason, Usage(job.prompt_tokens, job.cached, upto, job.dropped_turns)))

    def _sleep(self) -> None:
        if not self._sleeps or self.elapsed_s == 0:
            return
        self._interrupted.wait(None if self.elapsed_s == float("inf") else self.elapsed_s)


def _texts(request: Generate | Embed | Rerank) -> list[str]:
    """All that is to be read, the last turn or document last."""
    if isinstance(request, Generate):
        return [message.content for message in request.messages]
    if isinstance(request, Embed):
        return list(request.texts)
    return [request.query, *request.documents]


def _answer(request: Generate) -> list[str]:
    """The last turn's words, up to where the first stop string begins."""
    text = " ".join(request.messages[-1].content.split())
    ends = [text.find(stop) for stop in request.stop if stop in text]
    return text[: min(ends, default=None)].split(" ") if text else []


def _value(request: Embed | Rerank) -> list[float] | list[list[float]]:
    """A text's vector is its numbers of words and of characters; a document's score, how many of the query's words
    are in it."""
    if isinstance(request, Embed):
        return [[float(len(text.split())), float(len(text))] for text in request.texts]
    return [float(len(set(request.query.split()) & set(document.split()))) for document in request.documents]


class FakeDriver:
    """`options` of the spec set the fields of its plan."""

    name = "fake"
    version = "1"
    model_class: type[FakeModel] = FakeModel

    def __init__(self, plan: FakePlan | None = None, *, sleeps: bool = True) -> None:
        self.plan = plan
        self.sleeps = sleeps
        self.steps = 0
        self.loads = 0
        self.models: list[FakeModel] = []

    def load(self, spec: ModelSpec) -> FakeModel:
        if self.sleeps and not spec.path.exists():  # in Trio time its files are names alone
            raise DriverError(f"there is no file {spec.path}")
        plan = self.plan or _plan_from(spec.options)
        self.loads += 1
        if plan.load_error is not None and (plan.failing_loads is None or self.loads <= plan.failing_loads):
            raise DriverError(plan.load_error)
        if self.sleeps:
            time.sleep(plan.load_s)
        model = self.model_class(spec, plan, self._count_step, sleeps=self.sleeps)
        self.models.append(model)
        return model

    def _count_step(self) -> int:
        self.steps += 1
        return self.steps


def _plan_from(options: Mapping[str, object]) -> FakePlan:
    known = {f.name for f in fields(FakePlan)}
    unknown = options.keys() - known
    if unknown:
        raise DriverError(f"unknown option {min(unknown)!r}; the fake driver knows {', '.join(sorted(known))}")
    try:
        return msgspec.convert(dict(options), FakePlan)
    except msgspec.ValidationError as error:
        raise DriverError(f"the fake driver's options: {error}") from None


@dataclass
class TrioStepper(Commanded):
    """Steps a fake model in Trio time: each step sleeps for as long as the model says that it took."""

    load: Callable[[], Model]
    prefill_ms: float | None = None
    _commands: list[Command | None] = field(default_factory=list)
    _wake: trio.Event = field(default_factory=trio.Event)
    _busy_since: float | None = None
    _model: FakeModel | None = None

    async def run(
        self, on_events: EventSink, *, task_status: trio.TaskStatus[Model] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Started by: the model's inference task. Ends when: `close`, or the model is lost. Cancelled by: the
        kernel's end."""
        model = self.load()
        assert isinstance(model, FakeModel)
        self._model = model
        await trio.sleep(model._plan.load_s)
        task_status.started(model)
        floor = Floor(model, self.prefill_ms)
        try:
            while True:
                if not floor.running:
                    self._busy_since = None
                    await self._wake.wait()
                await trio.lowlevel.checkpoint()
                self._wake = trio.Event()
                self._busy_since = trio.current_time()
                commands, self._commands = self._commands, []
                for command in commands:
                    if command is None:
                        return
                    on_events(command(floor))
                if floor.running:
                    events = floor.step()
                    await trio.sleep(model.elapsed_s)
                    on_events(events)
        finally:
            self._busy_since = None
            model.close()

    def stats(self) -> Mapping[str, int | float | str]:
        return {} if self._model is None else self._model.stats()

    def stalled_s(self) -> float:
        return 0.0 if self._busy_since is None else trio.current_time() - self._busy_since

    def _command(self, command: Command | None) -> None:
        self._commands.append(command)
        self._wake.set()
