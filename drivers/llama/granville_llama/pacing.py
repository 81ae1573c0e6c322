"""How much of a prompt is read before streams have their next turn. Pure: what took how long is told, not measured.

Between two decodes of running streams at most so much is read as takes an allowance of time, so what a piece of prefill
will take has to be known beforehand. It has a part for the call itself, one for each token, and one for each token
that every one of them looks back at: a piece behind 1 500 tokens takes twice as long as one at a prompt's beginning.
"""

from __future__ import annotations

from dataclasses import dataclass

TURN_TOKENS = 512
TURN_TOKENS_A_SLOT = 64
"""Prefill before streams have their turn when there was no stream at its beginning, the larger of the two: prompts
that arrive together are read together, and their streams then run together."""
MIN_PIECE_TOKENS = 16
"""At least so much is read between two decodes, where it fits MOST_PLANNED of the allowance by itself …"""
LEAST_PIECE_TOKENS = 8
"""… and so much anyhow. Behind 1 500 tokens sixteen may take as long as four decodes of small weights, and their
streams would stall for five; with eight a prompt still comes to its end in twice its time."""
MIN_INTERRUPTED_TOKENS = 16
PIECE_STEP_TOKENS = 4
"""Matrix kernels work on rows by four: 17 tokens take as long as 20."""
DECODES_OF_PREFILL = 2.0
"""The allowance when nobody says: as long as so many decodes of the streams that wait."""
HEADROOM = 0.65
"""Of the allowance is planned for: a piece that takes longer than expected should still be within it. With 0.9 one gap
in a hundred was four decodes long instead of three."""
SPARE_S = 0.1
"""What is read in spare time comes in pieces of so long: a job that comes meanwhile waits for the end of one."""
MOST_PLANNED = 0.8
"""Of the allowance may a piece of MIN_PIECE_TOKENS be expected to take. One in a hundred takes 1.6 times as long as
expected: with two decodes allowed its streams then still wait for less than three and a half."""
FORGET = 0.97
"""What a measurement weighs beside the next one: about the last 30 count."""
TRUST = 0.05
"""What the expected proportions weigh beside a measurement: they decide only what was not measured."""
SPEED_WEIGHT = 0.25
"""Of the newest measurement, in the running average of how fast the machine is."""
MOST_SURPRISE = 2.0
"""A call that took longer than so many times what was expected is learnt from as if it had taken that."""

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Shape:
    """The proportions of a call's costs, before they are measured and where they cannot be told apart."""

    fixed: float
    """The call itself, as that many tokens."""
    context: float
    """How many tokens of context make a token twice as dear."""


PREFILL = Shape(fixed=4, context=2000)
DECODE = Shape(fixed=2, context=1000)


class Costs:
    """What a call takes: `fixed + token * tokens + context * work` seconds, where `work` is the sum over its tokens of
    the context that each looks back at. Least squares over the newest measurements, which are drawn to the shape."""

    def __init__(self, shape: Shape) -> None:
        self._scale: Vector = (shape.fixed, 1.0, 1.0 / shape.context)
        self._speed = 0.0
        """Seconds a token if the shape were the truth; 0 when nothing was measured."""
        self._squares = [[0.0] * 3 for _ in range(3)]
        self._products = [0.0] * 3
        self._costs: Vector = (0.0, 0.0, 0.0)

    @property
    def known(self) -> bool:
        return self._speed > 0

    def expect(self, tokens: int, work: float) -> float:
        """Seconds; 0 while nothing is known."""
        fixed, token, context = self._costs
        return fixed + token * tokens + context * work

    def tokens_within(self, seconds: float, context: int) -> int:
        """How many tokens behind `context` others can be computed in one call."""
        fixed, token, each = self._costs
        return max(0, int((seconds - fixed) / (token + each * context))) if self.known else 0

    def learn(self, tokens: int, work: float, seconds: float) -> None:
        if seconds <= 0 or tokens <= 0:
            return
        if self.known:
            seconds = min(seconds, MOST_SURPRISE * self.expect(tokens, work))
        # In units of the shape the three costs are about equal, which is what draws them to it evenly.
        fixed, token, context = self._scale
        size = (fixed, token * tokens, context * work)
        speed = seconds / sum(size)
        self._speed += (SPEED_WEIGHT if self.known else 1.0) * (speed - self._speed)
        weight = 1.0 / sum(size)  # relative errors count, or long calls would decide alone
        row = [part * weight for part in size]
        for i in range(3):
            self._products[i] = FORGET * self._products[i] + row[i] * seconds * weight
            for j in range(3):
                self._squares[i][j] = FORGET * self._squares[i][j] + row[i] * row[j]
        drawn = [[s + TRUST * (i == j) for j, s in enumerate(line)] for i, line in enumerate(self._squares)]
        solved = _solve(drawn, [product + TRUST * self._speed for product in self._products])
        low = self._speed / 20  # never nothing, and never less than nothing
        self._costs = (max(low, solved[0]) * fixed, max(low, solved[1]) * token, max(low, solved[2]) * context)

    def like(self, other: Costs, times: float) -> None:
        """Begin with the costs of another, so many times as large."""
        self._speed = other._speed * times
        fixed, token, context = other._costs
        self._costs = (fixed * times, token * times, context * times)


class Pacer:
    """Whose turn it is, and how long a piece of prefill may be. `threads` is with how many the next call is computed;
    costs are kept for each number apart."""

    def __init__(self, *, slots: int, batch_tokens: int) -> None:
        self._turn_tokens = max(TURN_TOKENS, slots * TURN_TOKENS_A_SLOT)
        self._batch_tokens = batch_tokens
        self._most_tokens = batch_tokens
        self._threads = 0
        self._prefill = Costs(PREFILL)
        self._decode = Costs(DECODE)
        self._by_threads: dict[int, tuple[Costs, Costs]] = {}
        self._begun = False
        """Whether something was read since the streams' last turn."""
        self._free_tokens = 0
        """Left of a turn that began without a stream."""
        self._left_s = 0.0
        """Left of a turn that began while streams waited."""

    @property
    def threads(self) -> int:
        return self._threads

    @threads.setter
    def threads(self, threads: int) -> None:
        if threads == self._threads:
            return
        if threads not in self._by_threads:
            known = (self._prefill, self._decode)
            fresh = known if not self._threads else (Costs(PREFILL), Costs(DECODE))
            if self._threads:
                for new, old in zip(fresh, known, strict=True):
                    if old.known:
                        new.like(old, self._threads / threads)
            self._by_threads[threads] = fresh
        self._threads = threads
        self._prefill, self._decode = self._by_threads[threads]

    def piece(
        self, *, throttled: bool, context: int, streams: int, stream_work: int, prefill_ms: float | None
    ) -> int:  # fmt: skip
        """How many tokens to read now of a prompt of which `context` are read; 0 when it is the streams' turn.
        `throttled`: streams wait, `streams` of them with `stream_work` tokens in their caches together."""
        if not self._begun:
            self._begun = True
            self._free_tokens = 0 if throttled else self._turn_tokens
            self._left_s = 0.0
            if throttled:
                allowance = (
                    DECODES_OF_PREFILL * self._decode.expect(streams, stream_work)
                    if prefill_ms is None
                    else prefill_ms / 1000
                )
                self._left_s = HEADROOM * allowance
                least = LEAST_PIECE_TOKENS if self._too_long(MIN_PIECE_TOKENS, context, allowance) else MIN_PIECE_TOKENS
                return min(self._most_tokens, max(least, self._fitting(context)))
        if not throttled:
            return self._most_tokens
        if self._free_tokens >= MIN_PIECE_TOKENS:
            return min(self._most_tokens, self._free_tokens)
        tokens = self._fitting(context)
        return min(self._most_tokens, tokens) if tokens >= MIN_PIECE_TOKENS else 0

    def spare_piece(self, context: int) -> int:
        """How many tokens to read when nobody waits for anything, so that whoever comes next does not wait for long."""
        self._begun = False
        tokens = self._prefill.tokens_within(SPARE_S, context)
        return min(self._most_tokens, max(MIN_PIECE_TOKENS, tokens - tokens % PIECE_STEP_TOKENS))

    def prefilled(self, tokens: int, work: int, seconds: float, *, learn: bool = True) -> None:
        """A piece of `tokens` was read; `work` sums for its parts their tokens times what each had read before. Not to
        `learn` from is one that was disturbed."""
        if learn:
            self._prefill.learn(tokens, work, seconds)
        self._free_tokens -= tokens
        self._left_s -= seconds
        self._most_tokens = min(self._batch_tokens, self._most_tokens * 2)

    def interrupted(self) -> None:
        """A piece did not come to its end. Perhaps again and again: a smaller one has a better chance."""
        self._most_tokens = max(MIN_INTERRUPTED_TOKENS, self._most_tokens // 2)

    def streams_turn(self) -> None:
        self._begun = False

    def decoded(self, streams: int, stream_work: int, seconds: float) -> None:
        self._decode.learn(streams, stream_work, seconds)

    def expect_prefill(self, tokens: int, work: int) -> float:
        """Seconds; 0 when nothing is known."""
        return self._prefill.expect(tokens, work)

    def expect_decode(self, streams: int, stream_work: int) -> float:
        """Seconds; 0 when nothing is known."""
        return self._decode.expect(streams, stream_work)

    def _too_long(self, tokens: int, context: int, allowance: float) -> bool:
        """Whether a piece is known to take more of the allowance than it may."""
        return self._decode.known and self._prefill.expect(tokens, tokens * context) > MOST_PLANNED * allowance

    def _fitting(self, context: int) -> int:
        tokens = self._prefill.tokens_within(self._left_s, context)
        return tokens - tokens % PIECE_STEP_TOKENS


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """x of a symmetric positive definite 3 x 3 `matrix` x = `right`, by Gauss."""
    rows = [[*line, value] for line, value in zip(matrix, right, strict=True)]
    for i in range(3):
        for j in range(i + 1, 3):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [b - factor * a for a, b in zip(rows[i], rows[j], strict=True)]
    solved = [0.0] * 3
    for i in (2, 1, 0):
        solved[i] = (rows[i][3] - sum(rows[i][j] * solved[j] for j in range(i + 1, 3))) / rows[i][i]
    return solved
