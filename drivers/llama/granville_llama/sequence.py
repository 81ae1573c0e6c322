"""One job's tokens and text: what is in the KV cache, what was generated, what of it may be shown yet."""

from __future__ import annotations

import codecs
from collections import deque
from dataclasses import dataclass, field

from granville.hosting.interface import Generate, ToolCall, Usage
from granville_llama.binding import Context, SamplerChain
from granville_llama.constrain import Guide


class TextStream:
    """Bytes of tokens to text that is final. A character may straddle tokens, and so may a stop string: whatever
    could still become either is held back."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = tuple(text for text in stop if text)
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""

    def feed(self, piece: bytes) -> tuple[str, bool]:
        """The text that has become final, and whether a stop string has ended it."""
        text = self._decode(piece)
        return self._release(text) if self._stop else (text, False)

    def flush(self) -> tuple[str, bool]:
        """The rest, at the end. Bytes that never became a character show as U+FFFD."""
        text, stopped = self._release(self._decode(b"", True))
        rest, self._held = self._held, ""
        return text + ("" if stopped else rest), stopped

    def _release(self, text: str) -> tuple[str, bool]:
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:  # the one that is complete first, so that it does not matter how the text was cut into tokens
            self._held = ""
            return text[: min(found)[1]], True
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut], False


@dataclass(eq=False, slots=True)
class Sequence:
    """A job on a slot, or parked. `tokens` are prompt and answer; the first `cached` of them are in the KV cache.

    The rest is what the model has to read before it can say the next token: of the prompt in pieces, of the answer one
    token at a time, which is how it was computed when it was generated. So a sequence whose cache is lost reads it
    again and goes on with the same tokens.
    """

    request: Generate
    tokens: list[int]
    sampler: SamplerChain
    arrival: int
    guide: Guide | None = None
    """What the answer's form allows next."""
    dropped_turns: int = 0
    """Of the conversation, left out of the prompt."""
    prompt_size: int = field(init=False)
    text: TextStream = field(init=False)
    slot: int = -1
    cached: int = 0
    reused: int = 0
    """Of the prompt, from a cache."""
    pure_limit: int = field(init=False)
    """How many tokens of the prompt depend on nothing but themselves; not those behind what a session generated."""
    leader: Sequence | None = None
    """The neighbour that reads the same beginning now; it will be copied once it has `awaited_tokens` of it."""
    awaited_tokens: int = 0
    followers: list[Sequence] = field(init=False, default_factory=list)
    retold: deque[int] = field(init=False)
    """Of `Generate.produced`, what has not been said again yet. It is said token by token as it was at first: whatever
    remembers what was said, sampler, guide and text, is then as it was."""
    urgency: int = field(init=False)
    """The job's own, or that of a more urgent one which waits for what this one reads."""

    def __post_init__(self) -> None:
        self.prompt_size = self.pure_limit = len(self.tokens)
        self.text = TextStream(self.request.stop)
        self.retold = deque(self.request.produced)
        self.urgency = self.request.urgency

    @property
    def decoding(self) -> bool:
        """The prompt is read: a token a decode, the last one or one that was generated before and is read again."""
        return self.cached >= self.prompt_size

    @property
    def unread(self) -> int:
        """Tokens of the prompt that are not in the KV cache."""
        return self.prompt_size - self.cached

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_size

    @property
    def pure(self) -> int:
        """How many tokens in the KV cache may serve any prompt that begins with them."""
        return min(self.cached, self.pure_limit)

    @property
    def rank(self) -> tuple[int, int]:
        """Who prefills first."""
        return (self.urgency, self.arrival)

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_size, self.reused, self.generated, self.dropped_turns)

    def choose(self, context: Context, index: int) -> int | None:
        """The next token, from the logits of the batch's token `index`; None when its guide has an error."""
        if self.retold and self.request.sampling.seed is None:
            self.sampler.accept(self.retold[0])
            return self.retold[0]
        token = (
            self.sampler.sample(context, index)
            if self.guide is None
            else self.guide.choose(context, index, self.sampler)
        )
        # With a seed it is drawn again, and comes out as before: so the next one will be drawn as it would have been.
        return self.retold[0] if self.retold and token is not None else token

    @property
    def complete(self) -> bool:
        """Its form lets nothing follow."""
        return self.guide is not None and self.guide.complete

    @property
    def call(self) -> ToolCall | None:
        return None if self.guide is None else self.guide.call

    @property
    def fault(self) -> str:
        """Why its guide cannot go on."""
        return (self.guide and self.guide.error) or ""

    def say(self, token: int, piece: bytes) -> tuple[str, bool]:
        """The text that a token made final, and whether a stop string has ended it."""
        return self.text.feed(piece if self.guide is None else self.guide.advance(token, piece))

    def flush(self) -> tuple[str, bool]:
        """The rest of the text, at the end: of a call that is whole there is none."""
        if self.guide is not None and not self.guide.complete:
            text, stopped = self.text.feed(self.guide.release())
            if stopped:
                return text, True
            rest, stopped = self.text.flush()
            return text + rest, stopped
        return self.text.flush()

    def begin_with(self, cached: int, pure: int) -> None:
        """Its first tokens came from a cache, `pure` of whose tokens anyone may have."""
        self.reused = cached
        self.pure_limit = self.prompt_size if cached <= pure else pure

    def follow(self, leader: Sequence, tokens: int) -> None:
        self.leader, self.awaited_tokens = leader, tokens
        leader.followers.append(self)
        leader.urgency = min(leader.urgency, self.urgency)

    def unfollow(self) -> None:
        leader, self.leader = self.leader, None
        if leader is not None:
            leader.followers.remove(self)
            leader.urgency = min([leader.request.urgency, *(other.urgency for other in leader.followers)])


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without being the whole of it."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
