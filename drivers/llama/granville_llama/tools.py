"""Tools: how a model is told of them, and the answer that is a call of one.

A call is `{"name": …, "arguments": {…}}`, the form that most models were trained on, under a grammar made from the
tools' schemas. Where the model may also talk, what it says first decides: a brace, or the template's own mark of a
call, begins a call, anything else is talk, and free from there on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llguidance import LLMatcher

from granville.hosting.interface import Message, Tool, ToolCall
from granville_llama.binding import Context, SamplerChain, Weights
from granville_llama.constrain import Grammars, Guide, schema_grammar
from granville_llama.gbnf import GrammarError
from granville_llama.masking import Mask
from granville_llama.schema import Schema, blame, prepare

MAX_TOOLS = 128
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
CHAT = "__chat__"
MARK = "<tool_call>"
"""What Qwen's and Hermes' templates put before a call."""
CALL_LOGITS = 4.0
"""How far below the likeliest first token that of a call may be, for a model that is told of tools in words: it was
not trained to call, and hardly ever begins with a brace. Over the 43 requests that this was chosen by, SmolLM2 then
called for 15 of the 20 that want it and 3 of the 23 that do not; without, for none. Over 40 others, which nothing was
chosen by (tests/tool_choice), it then called for 14 of 20 and 2 of 20."""
INTRODUCTION = "You can call these functions, each described by a JSON object with the schema of its arguments:"
MAY_CALL = (
    'To call one, answer with nothing but a JSON object: {"name": the function\'s name, "arguments": its arguments}. '
    "If none of them helps with the request, answer in plain text instead."
)
MUST_CALL = 'Answer with nothing but a JSON object: {"name": the function\'s name, "arguments": its arguments}.'


@dataclass(frozen=True, slots=True)
class Hint:
    """What tells that a model rather wants to call than to talk, though it might not begin so."""

    openings: tuple[int, ...]
    """The tokens that a call may begin with."""
    only_calls: LLMatcher


class ToolGuide(Guide):
    """Holds an answer back until it is talk, or whole. Talk goes on without it."""

    def __init__(self, matcher: LLMatcher, mask: Mask, *, may_talk: bool, hint: Hint | None = None) -> None:
        super().__init__(matcher, mask, "tools")
        self._undecided = may_talk
        self._hint = hint
        self._talks = False
        self._held = b""

    @property
    def call(self) -> ToolCall | None:
        if not self.complete:
            return None
        # The grammar leaves no other way to write it, so what the model wrote as arguments is cut out as it is.
        text = self._held.decode()
        text = text[text.index("{") :]
        name = json.loads(text)["name"]
        return ToolCall(name, text.removeprefix(_opening(name)).removesuffix("}"))

    def choose(self, context: Context, index: int, sampler: SamplerChain) -> int | None:
        if self._talks:
            return sampler.sample(context, index)
        if self._hint is not None:
            row = context.logits_row(index)
            if max(row[token] for token in self._hint.openings) >= max(row) - CALL_LOGITS:
                self._matcher, self._undecided = self._hint.only_calls, False
            self._hint = None
        return super().choose(context, index, sampler)

    def advance(self, token: int, piece: bytes) -> bytes:
        if self._talks:
            return piece
        super().advance(token, piece)
        self._held += piece
        if self._undecided and (begun := self._held.lstrip()) and not MARK.encode().startswith(begun):
            self._undecided = False
            self._talks = not begun.startswith((b"{", MARK.encode()))
        if not self._talks:
            return b""
        self.complete = False
        return self.release()

    def release(self) -> bytes:
        held, self._held = self._held, b""
        return held


def tool_guide(
    grammars: Grammars, tools: Sequence[Tool], choice: str, mark: str | None, openings: tuple[int, ...]
) -> ToolGuide | None:
    """None when nothing may be called. `mark`: how the model begins a call, in Lark. `openings`: for a model that has
    to be helped to call, the tokens that a call may begin with. Raises GrammarError, which names the tool."""
    chosen = offered(tools, choice)
    if not chosen:
        return None
    schemas = [_arguments(tool) for tool in chosen]
    subgrammars = [_named(number, schema) for number, schema in enumerate(schemas)]

    def matcher(may_talk: bool) -> LLMatcher:
        top = {"lark_grammar": _lark(chosen, may_talk, mark)}
        return grammars.matcher(json.dumps({"grammars": [top, *subgrammars]}))

    try:
        only_calls = matcher(may_talk=False)
        if choice != "auto":
            return ToolGuide(only_calls, grammars.mask, may_talk=False)
        hint = Hint(openings, only_calls) if openings else None
        return ToolGuide(matcher(may_talk=True), grammars.mask, may_talk=True, hint=hint)
    except GrammarError as error:
        for tool, schema in zip(chosen, schemas, strict=True):
            if (fault := grammars.fault_of(schema)) is not None:
                raise GrammarError(f"tools: {tool.name}: at {blame(schema, grammars.fault_of)}: {fault}") from None
        raise GrammarError(f"tools: {error}") from None


def check(tools: Sequence[Tool], choice: str) -> None:
    """Raises GrammarError, which names the field and the tool."""
    if len(tools) > MAX_TOOLS:
        raise GrammarError(f"tools: {len(tools)} of them, and {MAX_TOOLS} are the most")
    names: set[str] = set()
    for tool in tools:
        if not NAME.fullmatch(tool.name) or tool.name == CHAT:
            raise GrammarError(
                f"tools: a name has 1 to 64 letters, digits or _ . - and is not {CHAT}, got {tool.name[:80]!r}"
            )
        if tool.name in names:
            raise GrammarError(f"tools: two are named {tool.name!r}")
        names.add(tool.name)
    if choice not in ("auto", "none", "required", *names):
        raise GrammarError(f"tool_choice: expected auto, none, required or the name of a tool, got {choice[:80]!r}")


def offered(tools: Sequence[Tool], choice: str) -> list[Tool]:
    """Those that may be called."""
    return [tool for tool in tools if choice in ("auto", "required", tool.name)]


def told(messages: Sequence[Message], tools: Sequence[Tool], choice: str) -> tuple[Message, ...]:
    """The conversation for a template that knows of no tools: its system message says what can be called."""
    lines = [json.dumps(described(tool), ensure_ascii=False) for tool in tools]
    text = "\n".join([INTRODUCTION, *lines, MAY_CALL if choice == "auto" else MUST_CALL])
    if messages and messages[0].role == "system":
        return (Message("system", f"{messages[0].content}\n\n{text}"), *messages[1:])
    return (Message("system", text), *messages)


def described(tool: Tool) -> dict[str, object]:
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}


def mark_of(weights: Weights, template: str) -> str | None:
    """How a template that knows of calls begins one, as Lark: a token of that name, or its text."""
    if MARK not in template:
        return None
    is_control = any(
        weights.name(token) == MARK and not weights.piece(token) for token in weights.tokenize(MARK, control=True)
    )
    return MARK if is_control else json.dumps(MARK)


def _lark(tools: Sequence[Tool], may_talk: bool, mark: str | None) -> str:
    calls = " | ".join(f"{json.dumps(_opening(tool.name))} @args{number}" for number, tool in enumerate(tools))
    lines = [
        f"start: {'TALK? | ' if may_talk else ''}SPACE? {'(call | marked)' if mark else 'call'}",
        f'call: ({calls}) "}}"',
        "SPACE: /[ \\n]{1,4}/",
    ]
    if mark:
        lines.append(f"marked: {mark} SPACE? call")
    if may_talk:
        unmarked = f" & ~/[ \\n]*{MARK}(?s:.)*/" if mark else ""
        lines.append(f"TALK: /[ \\n]*[^{{ \\n](?s:.)*/{unmarked}")
    return "\n".join(lines)


def _opening(name: str) -> str:
    return f'{{"name": "{name}", "arguments": '


def _named(number: int, schema: Schema) -> dict[str, object]:
    (grammar,) = json.loads(schema_grammar(schema))["grammars"]
    return {**grammar, "name": f"args{number}"}


def _arguments(tool: Tool) -> Schema:
    """The schema of a tool's arguments, which are an object."""
    try:
        schema = prepare(tool.parameters)
    except GrammarError as error:
        raise GrammarError(f"tools: {tool.name}: {error}") from None
    if schema.get("type", "object") != "object":
        raise GrammarError(f"tools: {tool.name}: at #/type: arguments are an object, got {schema['type']!r}")
    return {"type": "object", **schema}
