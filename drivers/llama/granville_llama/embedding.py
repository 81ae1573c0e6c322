"""Models that read: a vector for a text, or a score for a query with a document.

The texts of all jobs take turns in batches of a bounded number of tokens, so that a job with one text is not stuck
behind one with a thousand, and a job can be cancelled between any two batches.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from granville.hosting.interface import (
    Capabilities,
    DriverError,
    Embed,
    Event,
    Failed,
    ModelInfo,
    Output,
    Rerank,
    Task,
    Usage,
)
from granville_llama.binding import Decoded, Weights
from granville_llama.reader import Pairs, Reader
from granville_llama.threads import Crew

BATCH_TOKENS = 128
"""What a step reads, unless a single text has more."""
BATCH_TEXTS = 32
AVERAGE_WEIGHT = 0.25
"""Of the newest measurement, in the running average of a token's time."""


@dataclass(eq=False, slots=True)
class _Job:
    task: Embed | Rerank
    values: list[list[float]] = field(default_factory=list)
    """A row for each text that was read, in order: a job's texts are read one after the other."""
    prompt_tokens: int = 0
    scheduled: int = 0
    """Texts that are read or in the next batch."""
    upcoming: list[int] | None = None
    """The tokens of the text after those, when it was looked at and did not fit."""

    @property
    def texts(self) -> tuple[str, ...]:
        return self.task.texts if isinstance(self.task, Embed) else self.task.documents


class EmbeddingModel:
    """A loaded model of type embedding or rerank."""

    def __init__(self, weights: Weights, reader: Reader, info: ModelInfo, crew: Crew, *, type: str, slots: int) -> None:
        self.info = info
        self.slots = slots
        self.capabilities = Capabilities(types=frozenset({type}), messages=False)
        self._weights = weights
        self._reader = reader
        self._crew = crew
        self._token_s: dict[int, float] = {}
        """By the number of threads."""
        self._pairs = Pairs(weights)
        self._takes = Embed if type == "embedding" else Rerank
        self._jobs: dict[str, _Job] = {}
        self._turns: deque[_Job] = deque()
        """Jobs with texts that are not scheduled; the first one's text is the next."""
        self._batch: list[tuple[_Job, list[int]]] = []
        self._at_once = BATCH_TEXTS
        """Texts of the batch to read in a step: fewer after an interrupt."""
        self._events: list[Event] = []

    def submit(self, request: Task) -> None:
        if not isinstance(request, self._takes):
            self._events.append(Failed(request.id, "unsupported", f"this model takes no {type(request).__name__}"))
            return
        if request.id in self._jobs:
            raise DriverError(f"a job with the id {request.id} is here already")
        if len(self._jobs) >= self.slots:
            raise DriverError(f"all {self.slots} slots are taken")
        job = self._jobs[request.id] = _Job(request)
        if job.texts:
            self._turns.append(job)
        else:
            self._finish(job)

    def step(self, prefill_ms: float | None) -> list[Event]:
        self._reader.rearm()
        if not self._batch:
            self._schedule()
        if self._batch:
            self._read(self._batch[: self._at_once])
        events, self._events = self._events, []
        return events

    def cancel(self, id: str) -> None:
        self._events = [event for event in self._events if event.id != id]
        job = self._jobs.get(id)
        if job:
            self._drop(job)

    def park(self, id: str) -> None:
        """Not done, as the capabilities say: a job is only as long as its texts."""

    def resume(self, id: str) -> None:
        raise DriverError("this model parks no jobs")

    def limit_cache(self, kv_ram_bytes: int) -> None:
        """Nothing is kept from one text to the next."""

    def stats(self) -> Mapping[str, int | float | str]:
        waiting = sum(len(job.texts) - len(job.values) for job in list(self._jobs.values()))
        return {"threads": self._crew.threads, "texts_waiting": waiting}

    def interrupt(self) -> None:
        self._reader.interrupt()

    def close(self) -> None:
        self._jobs.clear()
        self._crew.close()
        self._reader.close()
        self._weights.close()

    # schedule

    def _schedule(self) -> None:
        """Fill the batch with one text of each job in turn, and again."""
        self._at_once = BATCH_TEXTS
        room = BATCH_TOKENS
        while self._turns and len(self._batch) < BATCH_TEXTS:
            job = self._turns[0]
            tokens = self._next_text(job)
            if len(tokens) > self.info.context_size:
                self._fail(job, "prompt_too_long", self._too_long(job, len(tokens)))
                continue
            if self._batch and len(tokens) > room:
                job.upcoming = tokens
                return
            room -= len(tokens)
            self._batch.append((job, tokens))
            self._turns.popleft()
            job.scheduled += 1
            if job.scheduled < len(job.texts):
                self._turns.append(job)

    def _next_text(self, job: _Job) -> list[int]:
        if job.upcoming is not None:
            tokens, job.upcoming = job.upcoming, None
            return tokens
        text = job.texts[job.scheduled]
        if isinstance(job.task, Rerank):
            return self._pairs.tokens(job.task.query, text)
        # Where nothing was given and the vocabulary adds nothing, there still has to be something to read.
        return self._weights.tokenize(text, control=False, bos=True) or [max(0, self._weights.bos)]

    def _too_long(self, job: _Job, count: int) -> str:
        number = job.scheduled + 1
        text = (
            f"text {number} of {len(job.texts)}"
            if isinstance(job.task, Embed)
            else f"document {number}, with the query,"
        )
        return f"{text} has {count} tokens and the context {self.info.context_size}"

    # read

    def _read(self, batch: list[tuple[_Job, list[int]]]) -> None:
        threads, began = self._crew.before(), time.perf_counter()
        code, rows = self._reader.read([tokens for _, tokens in batch])
        if code is Decoded.ABORTED:  # perhaps again and again: a smaller batch has a better chance to come to its end
            self._at_once = max(1, len(batch) // 2)
            return
        if code is not Decoded.OK:
            raise DriverError("llama.cpp failed to read a batch; the model has to be loaded again")
        self._learn(threads, sum(len(tokens) for _, tokens in batch), time.perf_counter() - began)
        del self._batch[: len(batch)]
        for (job, tokens), row in zip(batch, rows, strict=True):
            if self._jobs.get(job.task.id) is job:
                self._take(job, len(tokens), row)

    def _learn(self, threads: int, tokens: int, seconds: float) -> None:
        """What a batch took, so that the crew can tell when other programs have the cores."""
        known = self._token_s.get(threads, 0.0)
        if self._crew.after(seconds, known * tokens):
            self._token_s[threads] = known + (AVERAGE_WEIGHT if known else 1.0) * (seconds / tokens - known)

    def _take(self, job: _Job, prompt_tokens: int, row: list[float]) -> None:
        if not all(map(math.isfinite, row)):
            self._fail(
                job, "driver_failed", f"the model gave numbers for text {len(job.values) + 1} that are not finite"
            )
            return
        job.prompt_tokens += prompt_tokens
        job.values.append(row)
        if len(job.values) == len(job.texts):
            self._finish(job)

    def _finish(self, job: _Job) -> None:
        self._drop(job)
        is_embedding = isinstance(job.task, Embed)
        value = [_normalised(row) for row in job.values] if is_embedding else [score for (score,) in job.values]
        self._events.append(Output(job.task.id, value, Usage(job.prompt_tokens)))

    def _fail(self, job: _Job, error: str, message: str) -> None:
        self._drop(job)
        self._events.append(Failed(job.task.id, error, message))

    def _drop(self, job: _Job) -> None:
        del self._jobs[job.task.id]
        self._batch = [part for part in self._batch if part[0] is not job]
        if job in self._turns:
            self._turns.remove(job)


def _normalised(row: list[float]) -> list[float]:
    """To a length of 1, so that a dot product is the cosine of the angle between two texts."""
    length = math.hypot(*row)
    return [number / length for number in row] if length else row
