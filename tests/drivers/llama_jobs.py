"""Jobs for a llama model and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from granville_llama import LlamaDriver

from granville.hosting.interface import (
    Event,
    Failed,
    Finished,
    Generate,
    Message,
    Model,
    ModelSpec,
    Output,
    Parked,
    Sampling,
    Token,
    Usage,
    Warm,
)

GREEDY = Sampling(temperature=0)
MAX_STEPS = 20_000


KV_RAM_BYTES = 64 << 20


def load(path: Path, *, slots: int = 4, context_size: int = 256, **options: object) -> Model:
    return LlamaDriver().load(
        ModelSpec(path, slots=slots, context_size=context_size, threads=1, options=options, kv_ram_bytes=KV_RAM_BYTES)
    )


def load_with_cache(
    path: Path, *, kv_ram_bytes: int = KV_RAM_BYTES, kv_dir: Path | None = None, fingerprint: str = "a file"
) -> Model:
    return LlamaDriver().load(
        ModelSpec(
            path,
            slots=4,
            context_size=512,
            threads=1,
            fingerprint=fingerprint,
            kv_ram_bytes=kv_ram_bytes,
            kv_disk_bytes=KV_RAM_BYTES,
            kv_dir=kv_dir,
        )
    )


def warm(model: Model, request: Warm) -> tuple[int, Usage]:
    """How many tokens are in memory then, and what it took."""
    model.submit(request)
    for _ in range(MAX_STEPS):
        for event in model.step(None):
            assert isinstance(event, Output), event
            (count,) = event.value
            assert isinstance(count, float)
            return int(count), event.usage
    raise AssertionError("it is not warm")


def job(
    id: str,
    text: str = "hello",
    max_tokens: int = 8,
    sampling: Sampling = GREEDY,
    stop: tuple[str, ...] = (),
    urgency: int = 2,
) -> Generate:
    return Generate(id, (Message("user", text),), max_tokens, sampling, stop, urgency)


@dataclass
class Answer:
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    end: Finished | Failed | None = None
    parked: int = 0
    cached_tokens: int = field(default=0, compare=False)
    """Depends on what ran before, as nothing else does; `end` has none."""

    @property
    def reason(self) -> str:
        assert isinstance(self.end, Finished), self.end
        return self.end.finish_reason


class Answers(dict[str, Answer]):
    """By id. Checks what holds for every job: one end, and nothing after it."""

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            answer = self.setdefault(event.id, Answer())
            assert answer.end is None, f"{event} after the end"
            match event:
                case Token(_, text, token_ids):
                    answer.text += text
                    answer.pieces.append(text)
                    answer.tokens += token_ids
                case Parked():
                    answer.parked += 1
                case Finished():
                    answer.cached_tokens = event.usage.cached_tokens
                    answer.end = replace(event, usage=replace(event.usage, cached_tokens=0))
                case Failed():
                    answer.end = event

    def ended(self, *ids: str) -> bool:
        return all(id in self and self[id].end is not None for id in ids)


def run(
    model: Model,
    *jobs: Generate,
    prefill_ms: float | None = None,
    each_step: Callable[[int, Answers], None] | None = None,
) -> Answers:
    """All jobs to their ends, at most `model.slots` of them at once."""
    answers = Answers()
    left = list(jobs)
    running: set[str] = set()
    for step in range(MAX_STEPS):
        while left and len(running) < model.slots:
            running.add(left[0].id)
            model.submit(left.pop(0))
        answers.take(model.step(prefill_ms))
        running = {id for id in running if not answers.ended(id)}
        if not left and not running:
            return answers
        if each_step:
            each_step(step, answers)
    raise AssertionError(f"still running after {MAX_STEPS} steps: {running}")
