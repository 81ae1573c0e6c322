"""Drivers in Python, each with one thing wrong: what a conformance run has to find, and in which words.

They are found by `PYTHONPATH`, as `broken_python:Name`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from granville.hosting.interface import (
    Capabilities,
    DriverError,
    Event,
    Failed,
    Finished,
    Generate,
    ModelInfo,
    ModelSpec,
    Output,
    Parked,
    Task,
    Token,
    Usage,
)


class Model:
    """Says its prompt word by word, and keeps to the interface."""

    capabilities = Capabilities(park=True)

    def __init__(self, spec: ModelSpec) -> None:
        self.slots = spec.slots
        self.info = ModelInfo("broken", 4096, 0)
        self.running: dict[str, tuple[list[str], int]] = {}
        self.parked: dict[str, tuple[list[str], int]] = {}
        self.events: list[Event] = []
        self.open = True
        self.interrupted = threading.Event()

    def submit(self, request: Task) -> None:
        assert isinstance(request, Generate)
        assert len(self.running) < self.slots, "all slots are taken"
        content = request.messages[-1].content
        if len(content.split()) >= self.info.context_size:
            self.events.append(Failed(request.id, "prompt_too_long", "too many words"))
            return
        ends = [content.find(stop) for stop in request.stop if stop in content]
        words = content[: min(ends, default=None)].split(" ")
        self.running[request.id] = (words[: request.max_tokens], 0)

    def step(self, prefill_ms: float | None) -> list[Event]:
        self.interrupted.clear()
        events, self.events = self.events, []
        for id, (words, done) in list(self.running.items()):
            events += self.say(id, words, done)
        return events

    def say(self, id: str, words: list[str], done: int) -> list[Event]:
        text = (" " if done else "") + words[done]
        if done + 1 < len(words):
            self.running[id] = (words, done + 1)
            return [Token(id, text, (done,))]
        del self.running[id]
        return [Token(id, text, (done,)), Finished(id, "length", Usage(len(words), 0, len(words)))]

    def cancel(self, id: str) -> None:
        self.running.pop(id, None)
        self.parked.pop(id, None)
        self.events = [event for event in self.events if event.id != id]

    def park(self, id: str) -> None:
        self.parked[id] = self.running.pop(id)
        self.events.append(Parked(id))

    def resume(self, id: str) -> None:
        self.running[id] = self.parked.pop(id)

    def limit_cache(self, kv_ram_bytes: int) -> None:
        """Nothing is cached."""

    def stats(self) -> Mapping[str, int | float | str]:
        return {"running": len(self.running)}

    def interrupt(self) -> None:
        self.interrupted.set()

    def close(self) -> None:
        self.open = False


class Good:
    name = "acme-granville-broken"
    version = "1.0"
    model: ClassVar[type[Model]] = Model

    def load(self, spec: ModelSpec) -> Any:
        if not spec.path.exists():
            raise DriverError(f"there is no file {spec.path}")
        return self.model(spec)


class TokenAfterEnd(Good):
    class model(Model):
        def say(self, id: str, words: list[str], done: int) -> list[Event]:
            events = super().say(id, words, done)
            return [*events, Token(id, "more")] if isinstance(events[-1], Finished) else events


class TwoEnds(Good):
    class model(Model):
        def say(self, id: str, words: list[str], done: int) -> list[Event]:
            events = super().say(id, words, done)
            return [*events, events[-1]] if isinstance(events[-1], Finished) else events


class UnknownJob(Good):
    class model(Model):
        def step(self, prefill_ms: float | None) -> list[Event]:
            return [*super().step(prefill_ms), Token("somebody-else", "hello")]


class StepRaises(Good):
    class model(Model):
        def step(self, prefill_ms: float | None) -> list[Event]:
            raise KeyError("no such tensor")


class StepRaisesLater(Good):
    class model(Model):
        def submit(self, request: Task) -> None:
            super().submit(request)
            if "👩" in request.messages[-1].content:  # type: ignore[union-attr]  # it only generates
                raise UnicodeError("what is this?")


class Hangs(Good):
    class model(Model):
        def step(self, prefill_ms: float | None) -> list[Event]:
            while True:
                time.sleep(0.01)


class HangsAlone(Good):
    """Says that its steps cannot be ended, and then one does not end."""

    class model(Model):
        capabilities = Capabilities(interruptible=False)

        def say(self, id: str, words: list[str], done: int) -> list[Event]:
            time.sleep(3600)
            return []


class NothingComes(Good):
    class model(Model):
        def step(self, prefill_ms: float | None) -> list[Event]:
            return []


class NeverEnds(Good):
    class model(Model):
        def say(self, id: str, words: list[str], done: int) -> list[Event]:
            return [Token(id, "and ")] * 50


KEPT: list[bytearray] = []


class Leaks(Good):
    class model(Model):
        def submit(self, request: Task) -> None:
            KEPT.append(bytearray(b"x") * 300_000)
            super().submit(request)


class LeaksFiles(Good):
    def load(self, spec: ModelSpec) -> Any:
        os.dup(2)
        return super().load(spec)


class WrongTypes(Good):
    class model(Model):
        def say(self, id: str, words: list[str], done: int) -> list[Event]:
            events: list[Any] = super().say(id, words, done)
            if isinstance(events[-1], Finished):
                events[-1] = {"id": id, "finish_reason": "stop"}
                events.append(Finished(id, "stop", Usage(1, 0, 1)))
            return events


class WrongUsage(Good):
    class model(Model):
        def say(self, id: str, words: list[str], done: int) -> list[Event]:
            events = super().say(id, words, done)
            if isinstance(events[-1], Finished):
                events[-1] = Finished(id, "done", Usage(1.5))  # type: ignore[arg-type]
            return events


class Tuple(Good):
    class model(Model):
        def step(self, prefill_ms: float | None) -> list[Event]:
            return tuple(super().step(prefill_ms))  # type: ignore[return-value]


class Bytes(Good):
    class model(Model):
        def say(self, id: str, words: list[str], done: int) -> list[Event]:
            first, *rest = super().say(id, words, done)
            return [Token(id, first.text.encode()), *rest]  # type: ignore[arg-type, union-attr]


class HalfCharacters(Good):
    class model(Model):
        def say(self, id: str, words: list[str], done: int) -> list[Event]:
            first, *rest = super().say(id, words, done)
            return [Token(id, first.text + "\udcff"), *rest]  # type: ignore[union-attr]


class OddErrors(Good):
    class model(Model):
        def submit(self, request: Task) -> None:
            if not request.messages[-1].content:  # type: ignore[union-attr]
                self.events.append(Failed(request.id, "oops", ""))
                return
            super().submit(request)


class FewerSlots(Good):
    class model(Model):
        def submit(self, request: Task) -> None:
            if len(self.running) == 2:
                raise DriverError("two jobs at once are the most")
            super().submit(request)


class MoreSlots(Good):
    class model(Model):
        def __init__(self, spec: ModelSpec) -> None:
            super().__init__(spec)
            self.slots = 64


class CancelKeeps(Good):
    class model(Model):
        def cancel(self, id: str) -> None:
            if id in self.running:
                self.running[f"ghost of {id}"] = self.running.pop(id)

        def say(self, id: str, words: list[str], done: int) -> list[Event]:
            return [] if id.startswith("ghost") else super().say(id, words, done)


class CancelLate(Good):
    class model(Model):
        def cancel(self, id: str) -> None:
            if id in self.running:
                del self.running[id]
                self.events.append(Token(id, "still here"))


class CancelSlow(Good):
    class model(Model):
        slept = False

        def cancel(self, id: str) -> None:
            if not self.slept:
                self.slept = True
                time.sleep(1.2)
            super().cancel(id)


class CancelRaises(Good):
    class model(Model):
        def cancel(self, id: str) -> None:
            del self.running[id]


class ParkLies(Good):
    class model(Model):
        def park(self, id: str) -> None:
            raise NotImplementedError("park")


class ParkForgets(Good):
    class model(Model):
        def resume(self, id: str) -> None:
            words, done = self.parked.pop(id)
            self.running[id] = (words[:done] + [word.upper() for word in words[done:]], done)


class ParkSilent(Good):
    class model(Model):
        def park(self, id: str) -> None:
            self.parked[id] = self.running.pop(id)


class ScoreLies(Good):
    class model(Model):
        capabilities = Capabilities(score=True)

        def submit(self, request: Task) -> None:
            if isinstance(request, Generate):
                super().submit(request)


class WarmLies(Good):
    class model(Model):
        capabilities = Capabilities(warm=True)

        def submit(self, request: Task) -> None:
            if isinstance(request, Generate):
                super().submit(request)
            else:
                self.events.append(Output(request.id, [], Usage()))


class TypeLies(Good):
    class model(Model):
        capabilities = Capabilities(types=frozenset({"embedding"}))


class NoStop(Good):
    class model(Model):
        def submit(self, request: Task) -> None:
            assert isinstance(request, Generate)
            self.running[request.id] = (request.messages[-1].content.split(" ")[: request.max_tokens], 0)


class TooMany(Good):
    class model(Model):
        def submit(self, request: Task) -> None:
            assert isinstance(request, Generate)
            self.running[request.id] = (request.messages[-1].content.split(" "), 0)


class InterruptRaises(Good):
    class model(Model):
        def interrupt(self) -> None:
            if threading.current_thread() is not threading.main_thread():
                raise RuntimeError("wrong thread")


class StatsWrong(Good):
    class model(Model):
        def stats(self) -> Mapping[str, int | float | str]:
            return {"running": list(self.running)}  # type: ignore[dict-item]


class Exits(Good):
    class model(Model):
        def step(self, prefill_ms: float | None) -> list[Event]:
            sys.exit(3)


class ExitsHard(Good):
    class model(Model):
        def step(self, prefill_ms: float | None) -> list[Event]:
            os._exit(0)


class Crashes(Good):
    class model(Model):
        def cancel(self, id: str) -> None:
            sys.stderr.write("about to touch what is not mine\n")
            os.kill(os.getpid(), signal.SIGSEGV)


class Lingers(Good):
    """A thread of its own never ends."""

    def __init__(self) -> None:
        threading.Thread(target=time.sleep, args=(3600,)).start()


class CrashesOften(Good):
    """In each of the checks of texts and of jobs that end early."""

    class model(Model):
        def cancel(self, id: str) -> None:
            os.abort()

        def submit(self, request: Task) -> None:
            super().submit(request)
            if request.stop or not request.messages[-1].content or len(self.running) > 1:  # type: ignore[union-attr]
                os.abort()

        def stats(self) -> Mapping[str, int | float | str]:
            os.abort()


class CrashesAtEnd(Good):
    def __init__(self) -> None:
        import atexit

        atexit.register(os.kill, os.getpid(), signal.SIGSEGV)


class LoadsAnything(Good):
    def load(self, spec: ModelSpec) -> Any:
        return Model(spec)


class LoadRaises(Good):
    def load(self, spec: ModelSpec) -> Any:
        with spec.path.open("rb"):
            return Model(spec)


class LoadsOnce(Good):
    loaded: Model | None = None

    def load(self, spec: ModelSpec) -> Any:
        if not spec.path.exists():
            raise DriverError(f"there is no file {spec.path}")
        if self.loaded is not None and self.loaded.open:
            raise DriverError("one model is loaded already")
        self.loaded = Model(spec)
        return self.loaded


class Incomplete(Good):
    class model(Model):
        def __getattribute__(self, name: str) -> Any:
            if name in ("interrupt", "limit_cache"):
                raise AttributeError(name)
            return super().__getattribute__(name)


class Talkative(Good):
    def load(self, spec: ModelSpec) -> Any:
        print("loading, one moment")
        return super().load(spec)


class BadName(Good):
    name = ""


class Restless(Good):
    @property
    def version(self) -> str:  # type: ignore[override]
        return f"1.{time.perf_counter_ns()}"
