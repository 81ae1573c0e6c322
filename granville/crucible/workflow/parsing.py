"""Jinja's parser, with the place in the string at which it gave up."""

from __future__ import annotations

import re
from collections.abc import Iterator

from jinja2 import TemplateSyntaxError, nodes
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser

from granville.crucible.workflow.bounds import TemplateError
from granville.crucible.workflow.sandbox import Sandbox

_WORDS = {
    "unexpected 'end of template'": "it ends too early",
    "unexpected end of template, expected": "it ends without",
    "'end of print statement'": "`}}`",
    "'end of statement block'": "`%}`",
    "'begin of print statement'": "`{{`",
    "'begin of statement block'": "`{%`",
    "'end of template'": "the end",
}


class _Parser(Parser):
    """Knows where the token stands at which it is."""

    def __init__(self, sandbox: Sandbox, source: str) -> None:
        super().__init__(sandbox, "")
        self._source = source
        self.position = 0

    def read(self, state: str | None) -> None:
        """Raises TemplateSyntaxError, as everything of a parser does."""
        self.stream = TokenStream(self._tokens(state), None, None)

    def _tokens(self, state: str | None) -> Iterator[Token]:
        lexer, offset = self.environment.lexer, 0
        for line, kind, text in lexer.tokeniter(self._source, None, None, state):
            found = self._source.find(text, offset)
            begin = offset if found < 0 else found
            offset = begin + len(text)
            for token in lexer.wrap([(line, kind, text)]):
                self.position = begin
                yield token
        self.position = len(self._source)


def parse_template(sandbox: Sandbox, source: str) -> nodes.Template:
    """Raises TemplateError."""
    parser = _Parser(sandbox, source)
    try:
        parser.read(None)
        return parser.parse()
    except TemplateSyntaxError as error:
        raise _failed(parser, error) from None


def parse_expression(sandbox: Sandbox, source: str) -> nodes.Expr:
    """Raises TemplateError."""
    parser = _Parser(sandbox, source)
    try:
        parser.read("variable")
        expression: nodes.Expr = parser.parse_expression()
        if not parser.stream.eos:
            parser.fail("there is something after the end of the expression", parser.stream.current.lineno)
    except TemplateSyntaxError as error:
        raise _failed(parser, error) from None
    return expression


def _failed(parser: _Parser, error: TemplateSyntaxError) -> TemplateError:
    text = error.message or "it cannot be read"
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    if match := re.fullmatch(r"unexpected char (.*) at (\d+)", text, re.DOTALL):
        hint = " begins a text that does not end" if match[1] in ("'\"'", '"\'"') else " is unexpected"
        return TemplateError(f"{match[1]}{hint}", position=int(match[2]))
    return TemplateError(text.rstrip("."), position=parser.position)
