"""The model: schedule, decode, sample, emit.

A step runs either one piece of prefill or one decode of all streams. While both have work they take turns: streams
wait for an allowance of prefill, then a token for each of them, and so on. A first token goes out as soon as it is
known. The two are never in one batch: the backend would split it into the same two parts.

What a job says does not depend on its neighbours. For that every batch is one that the backend computes at once, and
prompts are read in pieces of two tokens or more: with a single token a sequence (as when decoding) the backend's
attention adds in another order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from granville.hosting.interface import (
    Capabilities,
    DriverError,
    Event,
    Failed,
    Finished,
    FinishReason,
    Generate,
    ModelInfo,
    Parked,
    Score,
    Task,
    Token,
    Warm,
    shortened,
)
from granville_llama.binding import Context, Decoded, Weights
from granville_llama.guidance import Guidance
from granville_llama.kv import KvStore
from granville_llama.pacing import Pacer
from granville_llama.sampling import sampler_chain
from granville_llama.scoring import Scorer
from granville_llama.seats import Seats
from granville_llama.sequence import Sequence
from granville_llama.template import ChatTemplate, PromptError
from granville_llama.threads import Crew
from granville_llama.warming import Ahead, Warming

MAX_WAIT_S = 0.05
"""With nothing to do but wait for a file."""


class LlamaModel:
    """A loaded model. Slots are llama.cpp's sequence ids; streams are kept beside each other, because only neighbouring
    ids are computed together."""

    def __init__(
        self, weights: Weights, context: Context, template: ChatTemplate | None, info: ModelInfo, store: KvStore,
        scorer: Scorer, crew: Crew, *, slots: int, batch_tokens: int,
    ) -> None:  # fmt: skip
        self.info = info
        self.slots = slots
        self.capabilities = Capabilities(
            park=True,
            score=True,
            constrain=True,
            resume=True,
            messages=template is not None,
            tools=template is not None,
            drop_oldest=template is not None,
            warm=template is not None,
        )
        self._weights = weights
        self._context = context
        self._template = template
        self._guidance = Guidance(weights, template)
        self._seats = Seats(context, store, slots)
        self._scorer = scorer
        self._warming = Warming(self._seats, self._guidance, template, info.context_size)
        self._jobs: dict[str, Sequence] = {}
        self._events: list[Event] = []
        self._arrivals = 0
        self._pacer = Pacer(slots=slots, batch_tokens=batch_tokens)
        self._crew = crew

    def submit(self, request: Task) -> None:
        if isinstance(request, Score):
            self._scorer.submit(request)
            return
        if isinstance(request, Warm):
            self._warming.submit(request)
            return
        if not isinstance(request, Generate):
            raise DriverError(f"this model takes no {type(request).__name__}")
        if request.id in self._jobs:
            raise DriverError(f"a job with the id {request.id} is here already")
        try:
            tokens, dropped_turns = self._prompt(request)
            guide = self._guidance.guide(request)
        except PromptError as error:
            self._events.append(Failed(request.id, error.error, str(error)))
            return
        sampler = sampler_chain(request.sampling, self._weights.vocabulary_size, tokens)
        self._arrivals += 1
        sequence = Sequence(request, tokens, sampler, self._arrivals, guide, dropped_turns)
        self._warming.came(sequence)
        self._seats.place(sequence)
        self._jobs[request.id] = sequence

    def step(self, prefill_ms: float | None) -> list[Event]:
        self._context.rearm()
        self._pacer.threads = self._crew.before()
        self._events += self._scorer.step(alone=not self._seats.running)
        seats = self._seats
        seats.settle()
        streams = seats.streams
        unread = [sequence for sequence in seats.running if not sequence.decoding]
        waiting = sorted((s for s in unread if not seats.awaits(s)), key=lambda sequence: sequence.rank)
        if not waiting:
            self._without_prompts(streams, bool(unread), prefill_ms)
            return self._take_events()
        urgent = waiting[0].urgency == 0 and all(s.urgency > 0 for s in streams)
        throttled = bool(streams) and not urgent
        tokens = self._pacer.piece(
            throttled=throttled, context=waiting[0].cached, streams=len(streams), stream_work=_read(streams),
            prefill_ms=prefill_ms,
        )  # fmt: skip
        if tokens:
            self._prefill(waiting, tokens)
        else:
            self._decode()
        return self._take_events()

    def cancel(self, id: str) -> None:
        sequence = self._jobs.get(id)
        if sequence:
            self._leave(sequence, ended_well=False)
        self._scorer.cancel(id)
        self._warming.cancel(id)
        self._events = [event for event in self._events if event.id != id]

    def park(self, id: str) -> None:
        sequence = self._jobs.get(id)
        if sequence is None or sequence.slot < 0:
            return
        self._seats.park(sequence)
        self._events.append(Parked(id))

    def resume(self, id: str) -> None:
        sequence = self._jobs.get(id)
        if sequence is None or sequence.slot >= 0:
            raise DriverError(f"no job with the id {id} is parked")
        self._seats.unpark(sequence)

    def limit_cache(self, kv_ram_bytes: int) -> None:
        self._seats.store.limit(kv_ram_bytes)

    def stats(self) -> Mapping[str, int | float | str]:
        return {"threads": self._crew.threads, **self._seats.store.stats(), **self._warming.stats()}

    def interrupt(self) -> None:
        self._context.interrupt()

    def close(self) -> None:
        for sequence in list(self._jobs.values()):
            self._leave(sequence, ended_well=False)
        self._seats.close()
        self._crew.close()
        self._scorer.close()
        self._context.close()
        self._weights.close()

    # schedule

    def _prefill(self, waiting: list[Sequence], most_tokens: int) -> None:
        """Read a piece of the first prompt in `waiting`, and as long a piece of every other that fits beside it."""
        count = _piece(self._until_copied(waiting[0]), most_tokens)
        parts = [(waiting[0], count)]
        for sequence in waiting[1:]:
            unread = self._until_copied(sequence)
            fits = unread == count or (count > 1 and unread > count + 1)
            if fits and (len(parts) + 1) * count <= most_tokens:
                parts.append((sequence, count))
        tokens, work = len(parts) * count, count * _read([sequence for sequence, _ in parts])
        self._timed(tokens, work, lambda: self._run(parts))

    def _without_prompts(self, streams: list[Sequence], unread: bool, prefill_ms: float | None) -> None:
        """A step in which no prompt can be read: something ahead for one that may come, or else the streams' turn."""
        ahead = self._warming.next(streams) if self._warming else None
        if ahead is not None:
            tokens = (
                self._pacer.piece(
                    throttled=True, context=ahead.start, streams=len(streams), stream_work=_read(streams),
                    prefill_ms=prefill_ms,
                )
                if streams
                else self._pacer.spare_piece(ahead.start)
            )  # fmt: skip
            if tokens:
                count = _piece(ahead.unread, tokens)
                self._timed(count, count * ahead.start, lambda: self._read_ahead(ahead, count))
                return
        if streams:
            self._decode()
        elif (unread or self._warming) and not self._scorer and not self._events:
            self._seats.wait(MAX_WAIT_S, self._warming.awaited)

    def _read_ahead(self, ahead: Ahead, count: int) -> float | None:
        """Read `count` tokens onto an empty slot. The seconds it took, None when it did not come to its end."""
        end = ahead.start + count
        self._context.add(ahead.wish.tokens[ahead.start : end], ahead.start, ahead.slot, output=False)
        start = time.perf_counter()
        code = self._context.decode()
        if code is Decoded.FAILED:
            raise DriverError("llama.cpp failed to decode a batch; the model has to be loaded again")
        seconds = time.perf_counter() - start
        if code in (Decoded.OK, Decoded.ABORTED):
            self._warming.done(ahead, end if code is Decoded.OK else ahead.start)
        else:
            self._warming.give_up(ahead)
        return seconds if code is Decoded.OK else None

    def _timed(self, tokens: int, work: int, read: Callable[[], float | None]) -> None:
        """A piece of prefill, learnt from."""
        expected = self._pacer.expect_prefill(tokens, work)
        self._crew.guard(expected)
        seconds = read()
        usual = self._crew.after(seconds, expected)
        if seconds is None:
            self._pacer.interrupted()
        else:
            self._pacer.prefilled(tokens, work, seconds, learn=usual)

    def _decode(self) -> None:
        """The next token of every stream."""
        self._pacer.streams_turn()
        self._seats.close_ranks()
        streams = self._seats.streams
        count, work = len(streams), _read(streams)
        expected = self._pacer.expect_decode(count, work)
        self._crew.guard(expected)
        seconds = self._run([(sequence, 1) for sequence in streams])
        if self._crew.after(seconds, expected) and seconds is not None:
            self._pacer.decoded(count, work, seconds)

    def _until_copied(self, sequence: Sequence) -> int:
        """How much of its prompt to read before others get a copy of it; all, when nobody waits for one."""
        ends = [
            other.awaited_tokens for other in sequence.followers
            if sequence.cached + 1 < other.awaited_tokens < sequence.prompt_size - 1
        ]  # fmt: skip
        return min(ends, default=sequence.prompt_size) - sequence.cached

    # decode

    def _run(self, parts: list[tuple[Sequence, int]]) -> float | None:
        """Decode the next `count` tokens of each sequence in one batch, and sample for those that are then read to
        the end. The seconds it took, None when it did not come to its end."""
        context = self._context
        parts.sort(key=lambda part: part[0].slot)
        outputs: list[tuple[Sequence, int]] = []
        for sequence, count in parts:
            end = sequence.cached + count
            is_last = end == len(sequence.tokens)
            index = context.add(sequence.tokens[sequence.cached : end], sequence.cached, sequence.slot, is_last)
            if is_last:
                outputs.append((sequence, index))
        start = time.perf_counter()
        code = context.decode()
        if code is not Decoded.OK:
            self._recover(code, parts)
            return None
        seconds = time.perf_counter() - start
        for sequence, count in parts:
            sequence.cached += count
        # All are sampled before any leaves: the logits belong to the batch.
        sampled = [(sequence, sequence.choose(context, index)) for sequence, index in outputs]
        for sequence, token in sampled:
            self._emit(sequence, token)
        return seconds

    def _recover(self, code: Decoded, parts: list[tuple[Sequence, int]]) -> None:
        """After a batch that was not decoded: whatever of it is in the KV cache without its token sampled goes."""
        if code is Decoded.FAILED:
            raise DriverError("llama.cpp failed to decode a batch; the model has to be loaded again")
        for sequence, _ in parts:
            sequence.cached = self._context.trim(sequence.slot, sequence.cached)
        if code is Decoded.ABORTED:
            return
        if len(parts) > 1:  # one at a time, so that only the one at fault fails
            for part in parts:
                self._run([part])
            return
        ((sequence, _),) = parts
        reason = "no room in its KV cache" if code is Decoded.NO_KV_SLOT else "an invalid batch"
        self._leave(sequence, ended_well=False)
        self._events.append(Failed(sequence.request.id, "driver_failed", f"llama.cpp could not go on: {reason}"))

    # emit

    def _emit(self, sequence: Sequence, token: int | None) -> None:
        id = sequence.request.id
        if token is None:
            self._leave(sequence, ended_well=False)
            self._events.append(Failed(id, "bad_request", sequence.fault))
            return
        if self._weights.ends_generation(token):
            text, _ = sequence.flush()
            if text:
                self._events.append(Token(id, text))
            self._finish(sequence, "stop")
            return
        is_new = not sequence.retold
        if not is_new:
            sequence.retold.popleft()
        sequence.tokens.append(token)
        text, stopped = sequence.say(token, self._weights.piece(token))
        full = sequence.generated >= sequence.request.max_tokens or len(sequence.tokens) >= self.info.context_size
        if (full or sequence.complete) and not stopped:
            rest, stopped = sequence.flush()
            text += rest
        if is_new:
            self._events.append(Token(id, text, (token,)))
        if stopped or sequence.complete:
            self._finish(sequence, "stop")
        elif full:
            self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._leave(sequence, ended_well=True)
        call = sequence.call
        self._events.append(Finished(sequence.request.id, "tool" if call else reason, sequence.usage, call))

    def _take_events(self) -> list[Event]:
        events, self._events = self._events + self._warming.take(), []
        return events

    def _leave(self, sequence: Sequence, *, ended_well: bool) -> None:
        id = sequence.request.id
        if sequence.slot >= 0:
            self._seats.leave(sequence, ended_well=ended_well)
        else:
            self._seats.store.unpark(id)
        del self._jobs[id]
        sequence.sampler.close()

    # read

    def _prompt(self, request: Generate) -> tuple[list[int], int]:
        """The prompt's tokens, at least one, and how many turns were left out of it. Raises PromptError."""
        if request.max_tokens < 1:
            raise PromptError("bad_request", f"max_tokens: must be at least 1, got {request.max_tokens}")
        limit, dropped_turns, template = self.info.context_size, 0, self._template
        if template and request.drop_oldest:
            tokens, dropped_turns = shortened(
                request.messages,
                lambda messages: self._guidance.tokens(replace(request, messages=tuple(messages)), template),
                context_size=limit,
                max_tokens=request.max_tokens,
            )
        elif template:
            tokens = self._guidance.tokens(request, template)
        elif len(request.messages) == 1:
            tokens = self._weights.tokenize(request.messages[0].content, control=False, bos=True)
        else:
            raise PromptError(
                "unsupported", "the model has no chat template: give one turn of text, which it completes as it is"
            )
        if not tokens:
            # Nothing was given and the vocabulary adds nothing: generation has to start from some token.
            tokens = [max(0, self._weights.bos)]
        if len(tokens) >= limit:
            raise PromptError(
                "prompt_too_long",
                f"the prompt has {len(tokens)} tokens and the context {limit}; an answer needs room for one more",
            )
        return tokens, dropped_turns


def _piece(unread: int, most_tokens: int) -> int:
    """How many of a prompt's unread tokens go into a piece: no single one, and no single one left, if it has more."""
    count = min(unread, most_tokens)
    return count - 1 if unread - count == 1 and count > 2 else count


def _read(sequences: list[Sequence]) -> int:
    """Tokens in their caches, which every next token looks back at."""
    return sum(sequence.cached for sequence in sequences)
