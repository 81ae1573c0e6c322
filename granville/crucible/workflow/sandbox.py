"""Jinja's immutable sandbox, made narrower: what is not in a list here is refused when a template is compiled, and
what is in it pays for its work when it runs. Nothing of Python is reached: no attribute, no method, no call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from jinja2 import StrictUndefined, nodes, pass_context
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from granville.crucible.workflow.bounds import (
    CHARS_PER_UNIT,
    MAX_DEPTH,
    MAX_NODES,
    TemplateError,
    current_work,
    within_number,
    within_text,
)
from granville.crucible.workflow.filters import filters, kind_of, refuse_undefined, spread, tests, text_of
from granville.crucible.workflow.suggest import did_you_mean

MAX_EXPONENT = 64
_OPERATORS = (
    nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow, nodes.Neg, nodes.Pos, nodes.And,
    nodes.Or, nodes.Not, nodes.Compare, nodes.Operand, nodes.Concat, nodes.CondExpr,
)  # fmt: skip
_VALUES = (
    nodes.Name, nodes.Const, nodes.TemplateData, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Getattr,
    nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test, nodes.Call, nodes.Keyword,
)  # fmt: skip
_TAGS = (nodes.Template, nodes.Output, nodes.If, nodes.For, nodes.Assign, nodes.With)
ALLOWED = (*_TAGS, *_VALUES, *_OPERATORS)
_LOOP = frozenset(
    ("index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem", "depth0", "depth")
)
_REFUSED = {
    nodes.Include: "include", nodes.Import: "import", nodes.FromImport: "import", nodes.Extends: "extends",
    nodes.Block: "block", nodes.Macro: "macro", nodes.CallBlock: "call", nodes.FilterBlock: "filter",
    nodes.AssignBlock: "set with a body", nodes.ScopedEvalContextModifier: "autoescape", nodes.NSRef: "namespace",
}  # fmt: skip
_GLOBALS = {"range": spread}
_JINJAS = ("self", "super", "caller", "varargs", "kwargs")
# Names that no template can write.
_CONCAT, _SLICE, _COUNTED, _WEIGHED = " concat", " slice", " counted", " weighed"


class Missing(StrictUndefined):
    """What a name or a part of a value that is not there gives: any use of it is an error that says what there is."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        if self._undefined_hint:
            return self._undefined_hint
        name = str(self._undefined_name)
        names = current_work.get().scope
        return f"there is no `{name}`; {did_you_mean(name, map(str, names))}"


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            undefined=Missing, finalize=text_for_output, autoescape=False, optimized=False, cache_size=0,
            keep_trailing_newline=True,
        )  # fmt: skip
        self.filters = {**filters, _CONCAT: _concat, _SLICE: _slice, _COUNTED: _counted, _WEIGHED: _weighed}
        self.tests = dict(tests)
        self.globals = dict(_GLOBALS)

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self._part(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return self._part(obj, argument)

    def _part(self, obj: Any, key: Any) -> Any:
        """An entry of a map or an item of a list or a text; never an attribute of Python's."""
        refuse_undefined(obj)
        refuse_undefined(key)
        if isinstance(obj, Mapping):
            if isinstance(key, str) and key in obj:
                return obj[key]
            shown = str(key)[:80]
            return self.undefined(f"there is no `{shown}` in this map; {did_you_mean(shown, map(str, obj))}")
        if isinstance(key, str) and isinstance(obj, tuple) and key in getattr(obj, "_fields", ()):
            return getattr(obj, key)
        if isinstance(obj, LoopContext) and key in _LOOP:
            return getattr(obj, key)
        if isinstance(key, str) and key.isdecimal() and len(key) <= 9:
            key = int(key)
        if isinstance(key, int) and isinstance(obj, list | tuple | str):
            if -len(obj) <= key < len(obj):
                return obj[key]
            return self.undefined(f"there is no item {key} in {kind_of(obj)} of {len(obj)}")
        if isinstance(obj, LoopContext):
            return self.undefined(f"`loop` has no `{str(key)[:80]}`; {did_you_mean(str(key), _LOOP)}")
        return self.undefined(f"there is no `{str(key)[:80]}` in {kind_of(obj)}: only a map has names in it")

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        if obj is not spread:
            raise TemplateError("only `range(…)` can be called; there are filters for the rest, as in `name | length`")
        return spread(*args)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic on numbers; `+` and `*` on texts and lists, within bounds."""
        refuse_undefined(left)
        refuse_undefined(right)
        work = current_work.get()
        if isinstance(left, int | float) and isinstance(right, int | float):
            return _arithmetic(self, context, operator, left, right)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            within_text(len(left) + len(right))
        elif operator == "*" and isinstance(left, str | list) and isinstance(right, int):
            size = len(left) * max(right, 0)
            if isinstance(left, str):
                within_text(size)
            work.spend(size // CHARS_PER_UNIT if isinstance(left, str) else size)
        elif not (operator == "+" and isinstance(left, list) and isinstance(right, list)):
            raise TemplateError(
                f"`{operator}` cannot be used on {kind_of(left)} and {kind_of(right)}"
                + ("; `~` joins them as texts" if operator == "+" else "")
            )
        work.glance(left)
        work.glance(right)
        return super().call_binop(context, operator, left, right)


def _arithmetic(sandbox: Sandbox, context: Context, operator: str, left: float, right: float) -> float:
    if operator == "**" and abs(right) > MAX_EXPONENT:
        raise TemplateError(f"an exponent of {right}, and {MAX_EXPONENT} is the most")
    result = ImmutableSandboxedEnvironment.call_binop(sandbox, context, operator, left, right)
    if not isinstance(result, int | float):
        raise TemplateError(f"{left} {operator} {right} is no real number")
    within_number(result)
    return result


@pass_context
def text_for_output(_context: Context, value: Any) -> str:
    """With the context, although it does not look at it: what needs one is not folded when a template is compiled."""
    current_work.get().glance(value)
    return text_of(value)


def _concat(parts: list[Any]) -> str:
    texts = [text_of(part) for part in parts]
    within_text(sum(map(len, texts)))
    for text in texts:
        current_work.get().glance(text)
    return "".join(texts)


def _slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    refuse_undefined(value)
    if not isinstance(value, list | tuple | str):
        raise TemplateError(f"`[from:to]` takes a list or a text, and was given {kind_of(value)}")
    current_work.get().glance(value)
    return value[start:stop:step]


def _counted(items: Any, weight: int) -> Any:
    refuse_undefined(items)
    if not isinstance(items, list | tuple | dict):
        hint = "; `split` makes a list of a text" if isinstance(items, str) else ""
        raise TemplateError(f"`for` goes through a list, and was given {kind_of(items)}{hint}")
    return current_work.get().counted(items, weight)


def _weighed(value: Any) -> Any:
    refuse_undefined(value)
    current_work.get().weigh(value)
    return value


class Guard(NodeTransformer):
    """Refuses what is not allowed, and puts a price on what Jinja compiles to bare Python: comparisons, slices, `~`
    and loops."""

    def __init__(self) -> None:
        self.nodes = 0
        self.depth = 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self.nodes += 1
        self.depth += 1
        if self.nodes > MAX_NODES:
            raise TemplateError(f"over {MAX_NODES} parts; cut it into steps")
        if self.depth > MAX_DEPTH:
            raise TemplateError(f"nested deeper than {MAX_DEPTH} levels")
        if not isinstance(node, ALLOWED):
            name = next((name for kind, name in _REFUSED.items() if isinstance(node, kind)), type(node).__name__)
            raise TemplateError(f"`{name}` cannot be used in a workflow's templates", word=name.split()[0])
        try:
            return super().visit(node, *args, **kwargs)
        finally:
            self.depth -= 1

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, int | float):
            within_number(node.value)
        return node

    def visit_Name(self, node: nodes.Name) -> nodes.Node:
        if node.name in _JINJAS:
            raise TemplateError(f"`{node.name}` cannot be used in a workflow's templates", word=node.name)
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        if not (isinstance(node.node, nodes.Name) and node.node.name in _GLOBALS) or node.kwargs:
            raise TemplateError(
                "only `range(…)` can be called; there are filters for the rest, as in `name | length` or `name | upper`"
            )
        self._refuse_stars(node)
        return self.generic_visit(node)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        if node.name not in filters:
            raise TemplateError(f"there is no filter `{node.name}`; {did_you_mean(node.name, filters)}", word=node.name)
        self._refuse_stars(node)
        return self.generic_visit(node)

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        if node.name not in tests:
            raise TemplateError(f"there is no test `is {node.name}`; {did_you_mean(node.name, tests)}", word=node.name)
        self._refuse_stars(node)
        return self.generic_visit(node)

    def _refuse_stars(self, node: nodes.Call | nodes.Filter | nodes.Test) -> None:
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise TemplateError("`*` and `**` before an argument cannot be used here")

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _priced(_CONCAT, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            bounds = (node.arg.start, node.arg.stop, node.arg.step)
            return _priced(_SLICE, node.node, *(bound or nodes.Const(None) for bound in bounds))
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _priced(_WEIGHED, node.expr)
        for operand in node.ops:
            operand.expr = _priced(_WEIGHED, operand.expr)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise TemplateError("a `recursive` loop cannot be used in a workflow's templates")
        before = self.nodes
        self.generic_visit(node)
        data = sum(len(found.data) for found in node.find_all(nodes.TemplateData))
        weight = 1 + (self.nodes - before) // 4 + data // CHARS_PER_UNIT
        node.iter = _priced(_COUNTED, node.iter, nodes.Const(weight))
        return node


def _priced(name: str, node: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, list(args), [], None, None, lineno=node.lineno)


def guarded(tree: nodes.Template, sandbox: Sandbox) -> nodes.Template:
    """The tree with its prices. Raises TemplateError."""
    try:
        checked: nodes.Template = Guard().visit(tree)
    except RecursionError:
        raise TemplateError(f"nested deeper than {MAX_DEPTH} levels") from None
    checked.set_environment(sandbox)
    return checked
