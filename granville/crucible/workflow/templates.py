"""Templates and expressions of workflows: `render`, `evaluate`, and `names`, which says what they read.

They are Jinja's, in its immutable sandbox made narrower (sandbox.py), and bounded in size, work and time (bounds.py):
whatever a template or the values in it say, the end is a value or a TemplateError, and soon.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import jinja2
from jinja2 import nodes
from jinja2.environment import Template
from jinja2.meta import find_undeclared_variables

from granville.crucible.workflow.bounds import (
    MAX_DEPTH,
    MAX_TEMPLATE_CHARS,
    TemplateError,
    Work,
    current_work,
    finished,
    within_text,
)
from granville.crucible.workflow.parsing import parse_expression, parse_template
from granville.crucible.workflow.sandbox import Sandbox, guarded

__all__ = [
    "TemplateError",
    "evaluate",
    "is_name",
    "is_template",
    "locate",
    "names",
    "paths",
    "render",
    "render_input",
    "test",
]

MAX_CACHED = 1024
_MARKS = re.compile(r"\{\{|\{%|\{#")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")
_RESULT = "_crucible_result_"
_sandbox = Sandbox()

Form = Literal["expression", "template"]


@dataclass(frozen=True, slots=True)
class Compiled:
    template: Template
    native: bool
    """Its value is that of one expression, with its type; otherwise a text."""
    plain: bool
    """The expression is a name or a part of one: its value is one that somebody has checked already."""
    reads: frozenset[tuple[str, ...]]
    """Names, each with the parts that are written out after it: `steps.a.output` is ("steps", "a", "output")."""

    def run(self, work: Work) -> Any:
        context = self.template.new_context(dict(work.scope))
        root = self.template.root_render_func(context)
        if self.native:
            for _ in root:
                pass
            value = context.vars[_RESULT]
            if isinstance(value, jinja2.Undefined):
                return str(value)
            return value if self.plain else finished(value, work)
        chunks, chars = [], 0
        for chunk in root:
            chars += len(chunk)
            within_text(chars)
            chunks.append(chunk)
        return finished("".join(chunks), work)


def is_template(text: str) -> bool:
    return _MARKS.search(text) is not None


def is_name(text: str) -> bool:
    """Whether it is a bare name, or a name with parts: `question`, `steps.search.output`."""
    return _NAME.fullmatch(text) is not None


def render(value: Any, scope: Mapping[str, Any]) -> Any:
    """`value` with every string in it rendered, however deep in lists and maps (the keys of maps are left alone).

    A string that is one `{{ expression }}` is the expression's value, whatever its type; other templates give text;
    a string without `{{`, `{%` or `{#` is itself. Raises TemplateError.
    """
    return _render(value, Work(scope), 0)


def render_input(value: Any, scope: Mapping[str, Any]) -> Any:
    """The same for a step's `input`: there a bare name is the value of that name. Raises TemplateError."""
    if isinstance(value, str) and is_name(value):
        return evaluate(value, scope)
    return render(value, scope)


def evaluate(expression: str, scope: Mapping[str, Any]) -> Any:
    """The value of an expression, in JSON's types and bytes. Raises TemplateError."""
    return _run(expression, "expression", Work(scope))


def test(expression: str, scope: Mapping[str, Any]) -> bool:
    """Whether an expression is true: not false, null, 0 or empty. Raises TemplateError."""
    return bool(evaluate(expression, scope))


def names(value: Any, *, form: Form = "template") -> set[str]:
    """What the strings of `value` read: the first part of each name, and `steps.<id>`. Raises TemplateError."""
    read = paths(value, form=form)
    return {path[0] for path in read} | {f"steps.{path[1]}" for path in read if path[0] == "steps" and len(path) > 1}


def paths(value: Any, *, form: Form = "template") -> set[tuple[str, ...]]:
    """The same with all the parts that are written out: `steps.a.output` is ("steps", "a", "output")."""
    found: set[tuple[str, ...]] = set()
    for text in _strings(value):
        if form == "expression" or is_template(text):
            found |= compiled(text, form).reads
    return found


def _strings(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        _within_depth(depth)
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(item, depth + 1)


def _render(value: Any, work: Work, depth: int) -> Any:
    if isinstance(value, str):
        return _run(value, "template", work) if is_template(value) else value
    if isinstance(value, Mapping):
        _within_depth(depth)
        return {key: _render(item, work, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        _within_depth(depth)
        return [_render(item, work, depth + 1) for item in value]
    return value


def _within_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TemplateError(f"a value that is nested deeper than {MAX_DEPTH} levels")


def _run(source: str, form: Form, work: Work) -> Any:
    ready = compiled(source, form)
    token = current_work.set(work)
    try:
        return ready.run(work)
    except TemplateError as error:
        raise _of(source, error) from None
    except RecursionError:
        raise TemplateError("a value that is nested too deep", about=_shown(source)) from None
    except (
        jinja2.TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        raise TemplateError(_sentence(error), about=_shown(source)) from None
    finally:
        current_work.reset(token)


@lru_cache(maxsize=MAX_CACHED)
def compiled(source: str, form: Form) -> Compiled:
    """Raises TemplateError for what is no template or no expression, or has what is not allowed in one."""
    if len(source) > MAX_TEMPLATE_CHARS:
        raise TemplateError(f"{len(source)} characters, and {MAX_TEMPLATE_CHARS} are the most for what has templates")
    try:
        return _compile(source, form)
    except TemplateError as error:
        raise _of(source, error) from None
    except (RecursionError, MemoryError, SyntaxError):
        raise TemplateError("nested too deep", about=_shown(source)) from None
    except (jinja2.TemplateError, ValueError, OverflowError) as error:
        raise TemplateError(_sentence(error), about=_shown(source)) from None


def _compile(source: str, form: Form) -> Compiled:
    expression = parse_expression(_sandbox, source) if form == "expression" else None
    if expression is None:
        tree = parse_template(_sandbox, source)
        expression = _only_expression(tree)
    if expression is not None:
        tree = nodes.Template([nodes.Assign(nodes.Name(_RESULT, "store"), expression, lineno=1)], lineno=1)
    path = None if expression is None else _path(expression)
    plain = path is not None and path[0] not in _sandbox.globals
    tree = guarded(tree, _sandbox)
    reads = _reads(tree)
    code = _sandbox.compile(tree)
    return Compiled(
        Template.from_code(_sandbox, code, _sandbox.globals), expression is not None, plain, frozenset(reads)
    )


def _only_expression(tree: nodes.Template) -> nodes.Expr | None:
    """That of a string which is one `{{ expression }}`, a newline after it not counted."""
    parts = [part for node in tree.body for part in (node.nodes if isinstance(node, nodes.Output) else [node])]
    if len(parts) == 2 and isinstance(parts[1], nodes.TemplateData) and parts[1].data == "\n":
        parts.pop()
    if len(parts) == 1 and isinstance(parts[0], nodes.Expr) and not isinstance(parts[0], nodes.TemplateData):
        return parts[0]
    return None


def _path(node: nodes.Node) -> tuple[str, ...] | None:
    """The parts of `a.b[0].c`; None for anything else."""
    if isinstance(node, nodes.Name):
        return (node.name,)
    if isinstance(node, nodes.Getattr):
        before = _path(node.node)
        return None if before is None else (*before, node.attr)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str | int):
        before = _path(node.node)
        return None if before is None else (*before, str(node.arg.value))
    return None


def _reads(tree: nodes.Template) -> set[tuple[str, ...]]:
    free = find_undeclared_variables(tree) - set(_sandbox.globals)
    found: set[tuple[str, ...]] = set()
    pending: list[nodes.Node] = [tree]
    while pending:
        node = pending.pop()
        path = _path(node)
        if path is not None and path[0] in free:
            found.add(path)
        else:
            pending.extend(node.iter_child_nodes())
    return found


def locate(text: str, word: str) -> int | None:
    """Where a name or a sign stands in a template, first of all as a word of its own."""
    found = re.search(rf"(?<![\w.'\"]){re.escape(word)}(?!\w)", text) or re.search(re.escape(word), text)
    return found.start() if found else None


def _of(source: str, error: TemplateError) -> TemplateError:
    position = locate(source, error.word) if error.position is None and error.word else error.position
    return TemplateError(error.reason, about=_shown(source), position=position)


def _shown(source: str) -> str:
    line = " ".join(source.split())
    return f"`{line if len(line) <= 60 else line[:59] + '…'}`"


def _sentence(error: Exception) -> str:
    text = error.message or "" if isinstance(error, jinja2.TemplateError) else str(error)
    text = " ".join(text.split()).rstrip(".") or type(error).__name__
    return text[0].lower() + text[1:] if text[1:2].islower() else text
