"""llama.cpp's grammar notation, GBNF, read within bounds.

llama.cpp's own parser is not used: deep nesting ends its process, and so do some grammars while sampling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

MAX_SOURCE_CHARS = 64 * 1024
MAX_RULES = 1000
MAX_NESTING = 24
"""Of parentheses; llguidance takes about 30."""
MAX_REPETITIONS = 10_000
UNICODE_END = 0x10FFFF
NAME = re.compile(r"[A-Za-z0-9-]+")
SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
PLAIN = re.compile(r'"([^"\\\n]*)"')
COUNTS = re.compile(r"\{\s*(\d+)\s*(?:(,)\s*(\d*)\s*)?\}")
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "[": "[", "]": "]"}
HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
KNOWN_ESCAPES = r"\n \r \t \" \\ \[ \] \xHH \uHHHH \UHHHHHHHH"


class GrammarError(Exception):
    """What is wrong with a grammar or a schema, and where."""


@dataclass(frozen=True, slots=True)
class Literal:
    text: str


@dataclass(frozen=True, slots=True)
class CharClass:
    ranges: tuple[tuple[int, int], ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Reference:
    name: str
    at: int


@dataclass(frozen=True, slots=True)
class Row:
    """One after the other."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    node: Node
    least: int
    most: int | None


Node = Literal | CharClass | Reference | Row | Choice | Repeat
ANYTHING = CharClass((), negated=True)


def parse(source: str) -> dict[str, Node]:
    """The rules by name, in their order; `root` is one of them, and so is every one that is referred to. Raises
    GrammarError with line and column."""
    rules = _Parser(source).rules()
    for name, node in rules.items():
        for reference in references(node):
            if reference.name not in rules:
                place = _place(source, reference.at)
                raise GrammarError(f"{place}: no rule is named {reference.name!r}, which {name!r} refers to")
    if "root" not in rules:
        raise GrammarError("no rule is named 'root'; an answer has to match that one")
    return rules


def references(node: Node) -> Iterator[Reference]:
    """Wherever a rule refers to another or to itself."""
    if isinstance(node, Reference):
        yield node
    elif isinstance(node, Row | Choice):
        for each in node.nodes:
            yield from references(each)
    elif isinstance(node, Repeat):
        yield from references(node.node)


class _Parser:
    """Recursive descent, as deep as MAX_NESTING."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise GrammarError(f"it has {len(source)} characters, and {MAX_SOURCE_CHARS} are the most")
        self._source = source
        self._at = 0

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        self._skip(SPACE_AND_LINES)
        while self._at < len(self._source):
            start = self._at
            name = self._name()
            if name in rules:
                self._fail(f"the rule {name!r} is there already", start)
            if len(rules) == MAX_RULES:
                self._fail(f"more than {MAX_RULES} rules", start)
            self._skip(SPACE)
            if not self._take("::="):
                self._fail("expected ::= behind a rule's name")
            self._skip(SPACE_AND_LINES)
            rules[name] = self._choice(0)
            if self._at < len(self._source) and self._peek() not in "\r\n":
                self._fail(f"expected the end of the rule, got {self._peek()!r}")
            self._skip(SPACE_AND_LINES)
        return rules

    def _choice(self, depth: int) -> Node:
        nodes = [self._row(depth)]
        while self._take("|"):
            self._skip(SPACE_AND_LINES)
            nodes.append(self._row(depth))
        return nodes[0] if len(nodes) == 1 else Choice(tuple(nodes))

    def _row(self, depth: int) -> Node:
        """Inside of parentheses lines may break anywhere, outside only behind `|`."""
        space = SPACE_AND_LINES if depth else SPACE
        nodes: list[Node] = []
        while (node := self._element(depth)) is not None:
            nodes.append(self._repeated(node))
            self._skip(space)
        return nodes[0] if len(nodes) == 1 else Row(tuple(nodes))

    def _element(self, depth: int) -> Node | None:
        char, start = self._peek(), self._at
        if char == '"':
            return Literal(self._literal())
        if char == "[":
            return self._char_class()
        if char == "(":
            if depth == MAX_NESTING:
                self._fail(f"parentheses more than {MAX_NESTING} deep")
            self._at += 1
            self._skip(SPACE_AND_LINES)
            node = self._choice(depth + 1)
            if not self._take(")"):
                self._fail("expected ) for this one", start)
            return node
        if self._take("."):
            return ANYTHING
        if NAME.match(char):
            return Reference(self._name(), start)
        if char in ("", "|", ")", "\r", "\n"):
            return None
        if char in "<!":
            self._fail("tokens in a grammar (<name>) are not supported; write their text")
        return self._fail(f"unexpected {char!r}")

    def _repeated(self, node: Node) -> Node:
        for sign, least, most in (("*", 0, None), ("+", 1, None), ("?", 0, 1)):
            if self._take(sign):
                return Repeat(node, least, most)
        if self._peek() != "{":
            return node
        counts = COUNTS.match(self._source, self._at)
        if counts is None:
            self._fail("expected {n}, {n,} or {n,m}")
        numbers = [int(digits[:9]) for digits in (counts[1], counts[3]) if digits]
        if max(numbers) > MAX_REPETITIONS:
            self._fail(f"more than {MAX_REPETITIONS} repetitions")
        least, most = numbers[0], numbers[-1] if counts[3] or not counts[2] else None
        if most is not None and most < least:
            self._fail(f"{{{least},{most}}}: the most is less than the least")
        self._at = counts.end()
        return Repeat(node, least, most)

    def _literal(self) -> str:
        plain = PLAIN.match(self._source, self._at)
        if plain is not None:
            self._at = plain.end()
            return plain[1]
        start = self._at
        self._at += 1
        chars = []
        while not self._take('"'):
            if self._peek() in ("", "\n"):
                self._fail('expected " at the end of this text', start)
            chars.append(self._char())
        return "".join(chars)

    def _char_class(self) -> CharClass:
        start = self._at
        self._at += 1
        negated = self._take("^")
        ranges = []
        while not self._take("]"):
            if self._peek() in ("", "\n"):
                self._fail("expected ] at the end of these characters", start)
            first = last = ord(self._char())
            if self._peek() == "-" and self._source[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = ord(self._char())
            if last < first:
                self._fail(f"{chr(first)}-{chr(last)} is empty", start)
            ranges.append((first, last))
        if not ranges and not negated:
            self._fail("no character is in []", start)
        return CharClass(tuple(ranges), negated)

    def _char(self) -> str:
        char = self._peek()
        self._at += 1
        if char != "\\":
            return char
        kind = self._peek()
        self._at += 1
        if kind in ESCAPES and kind:
            return ESCAPES[kind]
        size = HEX_ESCAPES.get(kind)
        digits = self._source[self._at : self._at + (size or 0)]
        if size is None or not re.fullmatch(f"[0-9A-Fa-f]{{{size}}}", digits):
            self._fail(rf"\{kind} is no escape; there are {KNOWN_ESCAPES}", self._at - 2)
        self._at += size
        code = int(digits, 16)
        if code > UNICODE_END or 0xD800 <= code <= 0xDFFF:
            self._fail(f"\\{kind}{digits} is no character", self._at - size - 2)
        return chr(code)

    def _name(self) -> str:
        name = NAME.match(self._source, self._at)
        if name is None:
            self._fail("expected the name of a rule")
        self._at = name.end()
        return name[0]

    def _peek(self) -> str:
        return self._source[self._at : self._at + 1]

    def _take(self, sign: str) -> bool:
        if not self._source.startswith(sign, self._at):
            return False
        self._at += len(sign)
        return True

    def _skip(self, space: re.Pattern[str]) -> None:
        found = space.match(self._source, self._at)
        assert found is not None
        self._at = found.end()

    def _fail(self, reason: str, at: int | None = None) -> NoReturn:
        raise GrammarError(f"{_place(self._source, self._at if at is None else at)}: {reason}")


def _place(source: str, at: int) -> str:
    line = source.count("\n", 0, at) + 1
    return f"line {line}, column {at - source.rfind(chr(10), 0, at)}"
