"""Answers that a grammar or a JSON schema allows: llguidance says which tokens may come next, the sampler chooses.

What users send is bounded before it is compiled, compiled within limits, and watched while it is used. So it costs its
own job some time, and never the model.
"""

from __future__ import annotations

import json
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from granville.hosting.interface import Constraint, ToolCall
from granville_llama.binding import Context, SamplerChain, Weights
from granville_llama.gbnf import GrammarError
from granville_llama.lark import to_lark
from granville_llama.masking import ALLOWED, Mask, places
from granville_llama.schema import SEPARATORS, Schema, blame, read_schema

LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=200_000,
    step_max_items=20_000,
    max_lexer_states=10_000,
    max_grammar_size=30_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)
"""What keeps compiling under a fifth of a second, and a token under some tens of milliseconds."""
MAX_COMPILED = 8
"""Grammars that are kept for the next job with the same one."""
MAX_KEPT_CHARS = 64 * 1024
SPARE_S = 0.5
TOKEN_S = 0.01
"""Processor time that choosing tokens may take a job: TOKEN_S for each, and SPARE_S in all on top."""
MAX_REASON_CHARS = 300
LARK_PLACE = re.compile(r"^(?:at )?\d+\(\d+\): ")


class Guide:
    """Which token may come next in one job's answer. It stays with its job wherever that goes."""

    def __init__(self, matcher: LLMatcher, mask: Mask, what: str) -> None:
        """`what` is the request's field, for errors."""
        self._matcher = matcher
        self._mask = mask
        self._what = what
        self._spent_s = 0.0
        self._tokens = 0
        self.complete = False
        """Nothing may follow."""
        self.error: str | None = None
        """Why it cannot go on."""

    @property
    def call(self) -> ToolCall | None:
        """What the answer is when it is a call of a tool, once it is complete."""
        return None

    def choose(self, context: Context, index: int, sampler: SamplerChain) -> int | None:
        """The next token, from the logits of the batch's token `index`; None with `error` set."""
        began = time.thread_time()
        allowed = self._matcher.compute_logit_bias()
        if self._matcher.is_error() or (self._matcher.is_stopped() and not self._matcher.is_accepting()):
            self.error = f"{self._what}: no way to go on after {self._tokens} tokens: {reason(self._matcher)}"
            return None
        row = context.logits_row(index)
        self._mask.keep_only(row, allowed)
        token = sampler.sample(context, index)
        if not allowed[token]:  # rounding may end behind the last probable token
            token = max(places(allowed, ALLOWED), key=row.__getitem__)
        self._tokens += 1
        self._spent_s += time.thread_time() - began
        if self._spent_s > SPARE_S + TOKEN_S * self._tokens:
            self.error = f"{self._what}: too complex: to choose a token takes over {TOKEN_S * 1000:g} ms"
            return None
        return token

    def advance(self, token: int, piece: bytes) -> bytes:
        """Note a token that was chosen and does not end the answer. The bytes that may be shown now."""
        self._matcher.consume_token(token)
        self.complete = self._matcher.is_stopped()
        return piece

    def release(self) -> bytes:
        """What was held back, when the answer ends before it is complete."""
        return b""


class Grammars:
    """A model's grammars. The first one takes some tenths of a second more, for llguidance's view of the vocabulary."""

    def __init__(self, weights: Weights) -> None:
        self.mask = Mask(weights.vocabulary_size)
        self._weights = weights
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def guide(self, constraint: Constraint) -> Guide:
        """Raises GrammarError: the field, what is wrong, and where."""
        what = "grammar" if constraint.kind == "gbnf" else "json_schema"
        key = f"{constraint.kind} {constraint.source}"
        try:
            if key not in self._compiled:
                make = self._from_gbnf if constraint.kind == "gbnf" else self._from_schema
                self._keep(key, make(constraint.source))
        except GrammarError as error:
            raise GrammarError(f"{what}: {error}") from None
        return Guide(self._copy(key), self.mask, what)

    def matcher(self, grammar: str) -> LLMatcher:
        """For a grammar in llguidance's own notation. Raises GrammarError."""
        if grammar not in self._compiled:
            matcher = self.compile(grammar)
            if error := self._fault(matcher):
                raise GrammarError(error)
            self._keep(grammar, matcher)
        return self._copy(grammar)

    def fault_of(self, schema: Schema) -> str | None:
        """Why a schema does not compile."""
        return self._fault(self.compile(schema_grammar(schema)))

    def compile(self, grammar: str) -> LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = Vocabulary(self._weights).tokenizer()
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)

    def _from_gbnf(self, source: str) -> LLMatcher:
        matcher = self.compile(LLMatcher.grammar_from_lark(to_lark(source)))
        if error := self._fault(matcher):
            raise GrammarError(error)
        return matcher

    def _from_schema(self, source: str) -> LLMatcher:
        schema = read_schema(source)
        matcher = self.compile(schema_grammar(schema))
        if error := self._fault(matcher):
            raise GrammarError(f"at {blame(schema, self.fault_of)}: {error}")
        return matcher

    def _fault(self, matcher: LLMatcher) -> str | None:
        if not matcher.is_error():
            matcher = matcher.deep_copy()
            matcher.compute_bitmask()
            if not matcher.is_error() and (matcher.is_accepting() or not matcher.is_stopped()):
                return None
        return reason(matcher)

    def _keep(self, key: str, matcher: LLMatcher) -> None:
        self._compiled[key] = matcher
        if len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)

    def _copy(self, key: str) -> LLMatcher:
        self._compiled.move_to_end(key)
        copy = self._compiled[key].deep_copy()
        if len(key) > MAX_KEPT_CHARS:
            del self._compiled[key]
        return copy


class Vocabulary:
    """A model's tokens as llguidance wants them; it calls this to spell text that a grammar forces."""

    is_tokenizer_wrapper = True

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._made: LLTokenizer | None = None
        self.tokens = weights.vocabulary()
        ends = [token for token in range(weights.vocabulary_size) if weights.ends_generation(token)]
        self.ends = ends or [weights.vocabulary_size - 1]
        self.eos_token_id = self.ends[0]
        self.bos_token_id = weights.bos if weights.bos >= 0 else None
        self.special_token_ids: list[int] = []
        """They are marked in `tokens`."""

    def tokenizer(self) -> LLTokenizer:
        # Slices, precomputed sets of tokens, would save half a millisecond once an answer and cost 0.3 s here.
        tokenizer: Any = LLTokenizer(self, eos_token=self.ends, slices=[])  # type: ignore[arg-type]  # by its attributes
        self._made = tokenizer
        return self._made

    def __call__(self, text: str) -> list[int]:
        """Tokens that spell the text and nothing else. Must not raise: the caller is not Python."""
        data = text.encode(errors="replace")
        anchor = self._weights.tokenize("\n", control=False)
        # A vocabulary may put a space before a text; behind an anchor it does not.
        for before, whole in ((0, text), (len(anchor), f"\n{text}")):
            tokens = self._weights.tokenize(whole, control=False)[before:]
            if b"".join(map(self._weights.piece, tokens)) == data:
                return tokens
        return [] if self._made is None else self._made.greedy_tokenize(text)


def schema_grammar(schema: Mapping[str, Any]) -> str:
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=SEPARATORS)  # type: ignore[arg-type]


def reason(matcher: LLMatcher) -> str:
    """llguidance's sentence on one line, without its own notation."""
    lines = [line.strip() for line in matcher.get_error().splitlines()]
    words = [line for line in lines if line and line != "<non-verbose/>" and line.strip("^")]
    if not words or words[0].startswith("NoExtension"):
        return "no text fits it"
    if words[0].startswith("regex parse error"):
        return f"{words[0]} {words[-1]}"[:MAX_REASON_CHARS]
    return LARK_PLACE.sub("", words[0])[:MAX_REASON_CHARS]
