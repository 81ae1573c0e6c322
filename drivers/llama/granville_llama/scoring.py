"""Label scores: how likely each of a few labels is to follow a prompt, beside whatever else the model does.

A context of its own, for one sequence, so that no stream's batch and no slot is touched. It keeps the tokens of the
prompt before: of a prompt with a constant beginning only what differs is read again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from granville.hosting.interface import DriverError, Event, Failed, Output, Score, Usage
from granville_llama.binding import Context, Decoded, Weights

SCORING_TOKENS = 1024
"""The longest prompt that can be scored."""
BATCH_TOKENS = 64
"""Read in a step at most: a usual question is then one batch."""
PIECE_TOKENS = 32
"""Read in a step beside running streams, which wait for no more."""
SEEN_CHARS = 8
"""Of the prompt's end, what may take part in a label's first token."""


class Scorer:
    """Questions are answered one after another, each in one step or more."""

    def __init__(self, weights: Weights, make_context: Callable[[], Context]) -> None:
        """`make_context`, for one sequence of SCORING_TOKENS in batches of BATCH_TOKENS, is called at the first
        question: a model that nobody asks pays nothing."""
        self._weights = weights
        self._make_context = make_context
        self._context: Context | None = None
        self._threads = 0
        self._questions: deque[Score] = deque()
        self._prompt: list[int] = []
        """Of the question at the head; empty before its first piece."""
        self._reused = 0
        self._read: list[int] = []
        """What the sequence holds."""
        self._label_tokens: dict[tuple[str, tuple[str, ...]], list[int]] = {}

    def __bool__(self) -> bool:
        """Whether a question waits."""
        return bool(self._questions)

    def submit(self, question: Score) -> None:
        self._questions.append(question)

    def cancel(self, id: str) -> None:
        """What has been read of its prompt stays for the next."""
        if self._questions and self._questions[0].id == id:
            self._prompt = []
        self._questions = deque(question for question in self._questions if question.id != id)

    def set_threads(self, threads: int) -> None:
        self._threads = threads
        if self._context is not None:
            self._context.set_threads(threads)

    def step(self, *, alone: bool) -> list[Event]:
        """Read a piece of the prompt at the head; its answer when that was the last. `alone`: nothing else waits for
        the end of the step. Raises DriverError when the backend is lost."""
        if not self._questions:
            return []
        question = self._questions[0]
        try:
            value = self._go_on(question, BATCH_TOKENS if alone else PIECE_TOKENS)
        except _Refused as refused:
            self._prompt = []
            self._questions.popleft()
            return [Failed(question.id, refused.error, str(refused))]
        if value is None:
            return []
        usage = Usage(prompt_tokens=len(self._prompt), cached_tokens=self._reused)
        self._prompt = []
        self._questions.popleft()
        return [Output(question.id, value, usage)]

    def close(self) -> None:
        self._questions.clear()
        if self._context is not None:
            self._context.close()
            self._context = None

    def _go_on(self, question: Score, most_tokens: int) -> list[float] | None:
        context = self._context or self._open()
        labels = self._first_tokens(question)
        if not self._prompt:
            self._begin(context, question)
        start = len(self._read)
        count = _piece(len(self._prompt) - start, most_tokens)
        is_last = start + count == len(self._prompt)
        tokens = self._prompt[start : start + count]
        index = context.add(tokens, start, 0, is_last)
        code = context.decode()
        if code is Decoded.FAILED:
            raise DriverError("llama.cpp failed to read a prompt for its labels; the model has to be loaded again")
        if code is not Decoded.OK:
            self._read = self._read[: context.trim(0, start)]
            raise _Refused("driver_failed", f"llama.cpp did not read the prompt: {code.name.lower()}")
        self._read += tokens
        if not is_last:
            return None
        logits = context.logits(index)
        values = [float(logits[token]) for token in labels]
        highest = max(values)
        norm = highest + math.log(math.fsum(math.exp(value - highest) for value in values))
        return [value - norm for value in values]

    def _begin(self, context: Context, question: Score) -> None:
        prompt = self._weights.tokenize(question.prompt, control=False, bos=True) or [max(0, self._weights.bos)]
        if len(prompt) > SCORING_TOKENS:
            raise _Refused(
                "prompt_too_long", f"the prompt has {len(prompt)} tokens, and {SCORING_TOKENS} is the most for scores"
            )
        # The last token is read again for its logits, and not alone: a single one is computed in another order.
        same, most = 0, min(len(self._read), len(prompt) - 2)
        while same < most and self._read[same] == prompt[same]:
            same += 1
        self._read = self._read[: context.trim(0, same)]
        self._reused = len(self._read)
        self._prompt = prompt

    def _first_tokens(self, question: Score) -> list[int]:
        """A label counts by its first token, in the place where it would stand."""
        before = question.prompt[-SEEN_CHARS:]
        key = before, question.labels
        known = self._label_tokens.get(key)
        if known is None:
            tokens = [self._first_token(before, label) for label in question.labels]
            if len(tokens) < 2 or len(set(tokens)) < len(tokens):
                raise _Refused("bad_request", "labels: give two or more that begin with different tokens")
            self._label_tokens = {key: tokens}
            return tokens
        return known

    def _first_token(self, before: str, label: str) -> int:
        prefix = self._weights.tokenize(before, control=False)
        whole = self._weights.tokenize(before + label, control=False)
        if len(whole) > len(prefix) and whole[: len(prefix)] == prefix:
            return whole[len(prefix)]
        alone = self._weights.tokenize(label, control=False)
        if not alone:
            raise _Refused("bad_request", f"labels: {label!r} has no token")
        return alone[0]

    def _open(self) -> Context:
        try:
            self._context = self._make_context()
        except DriverError as error:
            raise _Refused("driver_failed", str(error)) from None
        if self._threads:
            self._context.set_threads(self._threads)
        return self._context


class _Refused(Exception):
    """This question cannot be answered; `error` is a wire error's name."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


def _piece(unread: int, most_tokens: int) -> int:
    """No single token is left for the last piece."""
    return most_tokens - 1 if unread == most_tokens + 1 else min(unread, most_tokens)
