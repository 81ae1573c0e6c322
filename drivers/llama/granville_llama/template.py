"""The model's own chat template, and messages to tokens through it.

The template comes out of a downloaded file, so it runs in jinja2's immutable sandbox with bounds on its source, its
time, its output and the memory it may take. What users wrote never becomes a control token: contents are marked,
the marks survive the template's own trimming and slicing, and between them names of control tokens are plain text.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import FrameType
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from granville.hosting.interface import DriverError, Message
from granville_llama.binding import Weights

MAX_SOURCE_CHARS = 256 * 1024
MAX_RENDER_S = 1.0
MAX_RENDER_GROWTH_KIB = 256 * 1024
MAX_EXTRA_CHARS = 1024 * 1024
"""What a template may add to the contents."""
MAX_EXPONENT = 64
MAX_INDENT = 16
ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")

# Unicode noncharacters, "not for interchange": removed from contents, so that none comes from there.
OPEN, CLOSE, SPLIT = "\ufdd0", "\ufdd1", "\ufdd2"
UNMARK = dict.fromkeys(map(ord, (OPEN, CLOSE, SPLIT)))
CONTENT = re.compile(f"({OPEN}[^{OPEN}{CLOSE}]*{CLOSE})")
MARKS = re.compile(f"[{OPEN}{CLOSE}{SPLIT}]")
PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})


class PromptError(Exception):
    """Messages that make no prompt; `error` is the wire's name for it."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


class TooCostly(Exception):
    """The template went over a bound."""


TEMPLATE_FAILURES = (
    TemplateError, TooCostly, ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""What a template's own expressions can raise."""


class ChatTemplate:
    """Compiled once a model."""

    def __init__(self, weights: Weights, source: str) -> None:
        """Raises DriverError when the source is not a template."""
        if len(source) > MAX_SOURCE_CHARS:
            raise DriverError(f"the model's chat template has {len(source)} characters, over {MAX_SOURCE_CHARS}")
        self.source = source
        self.takes_tools = re.search(r"\btools\b", source) is not None
        """It has a way of its own to tell the model of tools."""
        self._weights = weights
        environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = _tojson
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise DriverError(f"the model's chat template is not one: {error}") from None
        self._names = {kind: weights.special_token(kind) for kind in ("bos", "eos")}
        specials = {weights.name(token) for token in range(weights.vocabulary_size) if weights.is_special(token)}
        names = sorted((name for name in specials if len(name) > 1), key=len, reverse=True)
        # Every place where a name begins, overlapping ones too: a split after its first character breaks it.
        self._begins_special = re.compile(f"(?=(?:{'|'.join(map(re.escape, names))}))(.)", re.S) if names else None

    def tokens(self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]] = ()) -> list[int]:
        """The conversation up to where the assistant speaks. `tools`: what a template that `takes_tools` shows of
        them. Raises PromptError."""
        for message in messages:
            if not ROLE.fullmatch(message.role):
                raise PromptError(
                    "bad_request", f"messages: a role is a word such as user or assistant, got {message.role!r}"
                )
        said: dict[str, deque[tuple[int, ...]]] = {}
        for message in messages:  # in their order, for two may have said the same
            text = message.content.translate(UNMARK)
            said.setdefault(text if message.token_ids else text.strip(), deque()).append(message.token_ids)
        tokens: list[int] = []
        for part in CONTENT.split(self._render(messages, tools)):
            if part.startswith(OPEN) and part.endswith(CLOSE):
                text = MARKS.sub("", part)
                ids, rest = self._spelling(text, said[text].popleft()) if said.get(text) else ([], text)
                tokens += ids
                tokens += self._tokenize(rest, tokens, control=False)
                continue
            # The template's own text, or a content that the template has cut: then the splits keep it harmless.
            for piece in MARKS.split(part):
                tokens += self._tokenize(piece, tokens, control=True)
        weights = self._weights
        if weights.adds_bos and tokens[:1] != [weights.bos]:
            tokens.insert(0, weights.bos)
        return tokens

    def _spelling(self, text: str, token_ids: tuple[int, ...]) -> tuple[list[int], str]:
        """The first of these tokens, as far as they spell the text, and what of the text is left. A stop string, or
        whoever changed the history, may have cut it."""
        pieces = [self._weights.piece(token) for token in token_ids]
        if b"".join(pieces).decode(errors="replace") == text:
            return list(token_ids), ""
        data = text.encode(errors="replace")
        spelled, whole = 0, (0, 0)
        for count, piece in enumerate(pieces, 1):
            if data[spelled : spelled + len(piece)] != piece:
                break
            spelled += len(piece)
            if _begins_character(data, spelled):
                whole = (count, spelled)
        return list(token_ids[: whole[0]]), data[whole[1] :].decode(errors="replace")

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]]) -> str:
        marked = [
            {"role": message.role, "content": self._mark(message.content, whole=bool(message.token_ids))}
            for message in messages
        ]
        limit = sum(len(message["content"]) for message in marked) + MAX_EXTRA_CHARS
        names: dict[str, object] = {f"{kind}_token": name for kind, name in self._names.items()}
        if tools:
            names["tools"] = self._harmless(tools)
            limit += len(_tojson(names["tools"]))
        parts: list[str] = []
        size = 0
        try:
            with Deadline():
                for part in self._template.generate(messages=marked, add_generation_prompt=True, **names):
                    parts.append(part)
                    size += len(part)
                    if size > limit:
                        raise TooCostly(f"more than {limit} characters")
        except TEMPLATE_FAILURES as error:
            raise PromptError("unsupported", f"the model's chat template refuses these messages: {error}") from None
        return "".join(parts)

    def _mark(self, content: str, *, whole: bool) -> str:
        """White space at the ends stays outside of the marks, where a template's `trim` finds it; but inside of what
        the model has said as `whole`."""
        content = content.translate(UNMARK)
        core = content if whole else content.strip()
        if not core:
            return content
        start = content.index(core[0])
        before, after = content[:start], content[start + len(core) :]
        if self._begins_special:
            core = self._begins_special.sub(rf"\1{SPLIT}", core)
        return f"{before}{OPEN}{core}{CLOSE}{after}"

    def _harmless(self, value: object) -> object:
        """Names of control tokens in strings, at any depth, are split."""
        if isinstance(value, Mapping):
            return {self._harmless(key): self._harmless(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._harmless(item) for item in value]
        if isinstance(value, str):
            value = value.translate(UNMARK)
            return self._begins_special.sub(rf"\1{SPLIT}", value) if self._begins_special else value
        return value

    def _tokenize(self, text: str, before: list[int], *, control: bool) -> list[int]:
        if not text:
            return []
        weights = self._weights
        if weights.is_spm and before and not weights.is_special(before[-1]):
            # SentencePiece puts a space before a text; in the middle of one it must not. Behind an anchor it does not.
            anchor = weights.tokenize("\n", control=False)
            anchored = weights.tokenize("\n" + text, control=control)
            if anchored[: len(anchor)] == anchor:
                return anchored[len(anchor) :]
        return weights.tokenize(text, control=control)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, and single operations that make something huge refused; `Deadline` has the rest."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if hasattr(sequence, "__len__") and isinstance(times, int) and len(sequence) * times > MAX_EXTRA_CHARS:
                    raise TooCostly("a repetition is too long")
        elif operator == "**" and abs(right) > MAX_EXPONENT:
            raise TooCostly("a power is too large")
        elif operator == "%" and isinstance(left, str):
            raise TooCostly("string formatting is not available")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in PADDING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)


class Deadline:
    """Ends what runs inside, in this thread, past MAX_RENDER_S seconds or MAX_RENDER_GROWTH_KIB of new memory.

    Looks at every line that Python executes: a template is compiled to Python, and has no other place to be stopped
    from inside its thread. A render has tens of lines.
    """

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        self._ends = time.monotonic() + MAX_RENDER_S
        self._memory_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + MAX_RENDER_GROWTH_KIB
        sys.settrace(self._look)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _look(self, frame: FrameType, event: str, argument: object) -> Any:
        if time.monotonic() > self._ends:
            raise TooCostly(f"it takes longer than {MAX_RENDER_S:g} s")
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > self._memory_kib:
            raise TooCostly(f"it takes more than {MAX_RENDER_GROWTH_KIB // 1024} MiB")
        return self._look


def _begins_character(data: bytes, at: int) -> bool:
    """Whether UTF-8 text can be cut there."""
    return at == len(data) or data[at] & 0xC0 != 0x80


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    """As templates expect it; jinja2's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=None if indent is None else min(indent, MAX_INDENT))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
