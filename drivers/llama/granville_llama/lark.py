"""GBNF rules as a grammar in llguidance's dialect of Lark.

What is a terminal, a regular expression, and what a rule decides what a grammar means and costs. A rule from which no
recursion is reached is a terminal. So a grammar without recursion is a single one, and means just what it says; in a
recursive rule each part without recursion is one, and takes as much text as it can before what follows is looked at.
"""

from __future__ import annotations

from granville_llama.gbnf import (
    CharClass,
    Choice,
    GrammarError,
    Literal,
    Node,
    Reference,
    Repeat,
    Row,
    parse,
    references,
)

MAX_EXPANDED = 50_000
"""Characters and classes of a rule when all that it refers to is written out, as often as it may be repeated."""


def to_lark(source: str) -> str:
    """From GBNF. Raises GrammarError, which says where."""
    return _Writer(parse(source)).lark()


class _Writer:
    def __init__(self, rules: dict[str, Node]) -> None:
        self._rules = rules
        self._numbers = {name: number for number, name in enumerate(rules)}
        self._sizes: dict[str, int] = {}
        """Of the rules that are terminals."""
        self._parts: list[str] = []
        """Terminals that have no name in the source."""
        self._find_terminals()

    def lark(self) -> str:
        lines = [
            f"{self._symbol(name)}: {self._terminal(node) if name in self._sizes else self._rule(node)}"
            for name, node in self._rules.items()
        ]
        return "\n".join([f"start: {self._symbol('root')}", *lines, *self._parts])

    def _find_terminals(self) -> None:
        """Rules whose references are all terminals, again and again until there are no more."""
        users: dict[str, list[str]] = {name: [] for name in self._rules}
        open_references: dict[str, int] = {}
        for name, node in self._rules.items():
            used = {reference.name for reference in references(node)}
            open_references[name] = len(used)
            for other in used:
                users[other].append(name)
        ready = [name for name, count in open_references.items() if not count]
        for name in ready:  # which grows
            self._sizes[name] = self._bounded_size(name)
            for user in users[name]:
                open_references[user] -= 1
                if not open_references[user]:
                    ready.append(user)
        for name in self._rules.keys() - self._sizes.keys():
            self._bounded_size(name)

    def _bounded_size(self, name: str) -> int:
        size = self._size(self._rules[name])
        if size > MAX_EXPANDED:
            raise GrammarError(f"the rule {name!r} is too large: written out it has over {MAX_EXPANDED} characters")
        return size

    def _size(self, node: Node) -> int:
        match node:
            case Literal(text):
                return len(text)
            case CharClass():
                return 1 + len(node.ranges)
            case Reference(name):
                return self._sizes.get(name, 1)
            case Row(nodes) | Choice(nodes):
                return sum(map(self._size, nodes))
            case Repeat(inner, least, most):
                return max(1, least, most or 0) * self._size(inner)

    def _is_terminal(self, node: Node) -> bool:
        return all(reference.name in self._sizes for reference in references(node))

    def _symbol(self, name: str) -> str:
        return f"{'T' if name in self._sizes else 'r'}{self._numbers[name]}"

    def _terminal(self, node: Node) -> str:
        match node:
            case Literal(text):
                return _literal(text)
            case CharClass():
                return _char_class(node)
            case Reference(name):
                return self._symbol(name)
            case Row(nodes):
                return " ".join(map(self._atom, nodes)) or '""'
            case Choice(nodes):
                return " | ".join(map(self._terminal, nodes))
            case Repeat(inner, _, most):
                return '""' if most == 0 else self._atom(inner) + _counts(node)

    def _atom(self, node: Node) -> str:
        text = self._terminal(node)
        return f"({text})" if isinstance(node, Row | Choice | Repeat) else text

    def _rule(self, node: Node) -> str:
        if isinstance(node, Reference):
            return self._symbol(node.name)
        if self._is_terminal(node):
            return self._part(node)
        match node:
            case Row(nodes):
                return " ".join(self._row(nodes))
            case Choice(nodes):
                return " | ".join(map(self._rule, nodes))
            case Repeat(inner, _, most):
                return '""' if most == 0 else f"({self._rule(inner)}){_counts(node)}"
        raise AssertionError(f"{node} has no reference and is no terminal")

    def _row(self, nodes: tuple[Node, ...]) -> list[str]:
        """Neighbours without recursion are one terminal: inside of it nothing is decided too early."""
        parts: list[str] = []
        run: list[Node] = []
        for node in nodes:
            if self._is_terminal(node):
                run.append(node)
                continue
            if run:
                parts.append(self._part(Row(tuple(run))))
                run = []
            parts.append(f"({self._rule(node)})")
        return [*parts, self._part(Row(tuple(run)))] if run else parts

    def _part(self, node: Node) -> str:
        name = f"P{len(self._parts)}"
        self._parts.append(f"{name}: {self._terminal(node)}")
        return name


def _counts(repeat: Repeat) -> str:
    return f"{{{repeat.least},{'' if repeat.most is None else repeat.most}}}"


def _literal(text: str) -> str:
    """As a regular expression; characters that may mean something there by their numbers."""
    return f"/{''.join(map(_number, map(ord, text)))}/" if text else '""'


def _char_class(chars: CharClass) -> str:
    if not chars.ranges:
        return "/(?s:.)/"
    ranges = "".join(f"{_number(first)}-{_number(last)}" for first, last in chars.ranges)
    return f"/[{'^' if chars.negated else ''}{ranges}]/"


def _number(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:x}}}"
