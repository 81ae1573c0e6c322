"""Plain values against the structs of model.py: all that does not fit, each with its path and what would be right.

msgspec tells of the first mismatch alone, so the types are walked here, as msgspec.inspect describes them; what has
passed is then converted by msgspec itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import NODEFAULT, inspect

from granville.crucible.workflow.model import Input, Step
from granville.crucible.workflow.problems import Path
from granville.crucible.workflow.suggest import did_you_mean

Tell = Callable[..., None]
"""Called with the path and the sentence; `key=True` where the key is meant and not its value."""

EXPRESSIONS = frozenset(("should_run", "until", "result", "for_each", "items"))
"""Texts that are expressions: a boolean or a number there is written as one."""
_HINTS = {
    "max": "rounds at most, such as `max: 8`",
    "until": "an expression that ends it, such as `until: plan.done`",
    "items": "an expression that gives a list",
    "id": "a name for the step, such as `id: answer`",
    "steps": "a list of steps, such as `steps: [{id: answer, model_type: inference, input: …}]`",
    "name": "a name for the workflow",
    "use": "the value to go on with",
}
_NEARLY = {
    "type": "model_type", "model": "model_id", "prompt": "input", "args": "with", "arguments": "with",
    "when": "should_run", "if": "should_run", "condition": "should_run", "depends_on": "needs", "timeout": "timeout_s",
    "schema": "json_schema", "foreach": "for_each", "loop": "repeat", "on_failure": "on_error", "text": "input",
    "version": "crucible",
}  # fmt: skip
"""What fields are called elsewhere."""


class _Bad:
    """In place of a value that is wrong."""


BAD = _Bad()


class Shape:
    """Walks a value beside a type. `written` gives a scalar as it stands in a file: a text that looks like a number
    stays as it was written."""

    def __init__(self, tell: Tell, written: Callable[[Path], str | None]) -> None:
        self._tell_it = tell
        self._written = written
        self.broken: set[Path] = set()
        """Steps of which something was wrong: what is left of them stands in their place."""

    def _tell(self, path: Path, sentence: str, *, key: bool = False) -> _Bad:
        self._tell_it(path, sentence, key=key)
        steps = [at for at, part in enumerate(path) if isinstance(part, int) and at and path[at - 1] == "steps"]
        self.broken |= {path[: at + 1] for at in steps[-1:]}
        return BAD

    def check(self, value: Any, wanted: inspect.Type, path: Path) -> Any:
        """The value, with what could be put right kindly put right, without what is wrong, which has been told; BAD
        when nothing is left of it."""
        if isinstance(wanted, inspect.AnyType):
            return value
        if isinstance(wanted, inspect.UnionType):
            return self._union(value, wanted, path)
        if isinstance(wanted, inspect.StructType):
            return self._struct(value, wanted, path)
        if isinstance(wanted, inspect.VarTupleType | inspect.ListType):
            return self._list(value, wanted, path)
        if isinstance(wanted, inspect.DictType):
            return self._dict(value, wanted, path)
        return self._scalar(value, wanted, path)

    def _union(self, value: Any, union: inspect.UnionType, path: Path) -> Any:
        for kind in union.types:
            if _is_of(value, kind):
                return self.check(value, kind, path)
        wanted = [kind for kind in union.types if not isinstance(kind, inspect.NoneType)]
        if len(wanted) == 1:
            return self.check(value, wanted[0], path)
        if path and path[-1] in EXPRESSIONS and isinstance(value, bool | int | float):
            return _as_expression(value)
        expected = " or ".join(map(described, wanted))
        return self._tell(path, f"expected {expected}, got {shown(value)}{_list_hint(path, value)}")

    def _struct(self, value: Any, wanted: inspect.StructType, path: Path) -> Any:
        if not isinstance(value, Mapping):
            hint = f"; write {{type: {value}}}" if wanted.cls is Input and isinstance(value, str) else ""
            self._tell(path, f"expected {described(wanted)}, got {shown(value)}{hint}")
            return self._remains(wanted, {}, path)
        fields = {field.encode_name: field for field in wanted.fields}
        made: dict[str, Any] = {}
        meant: set[str] = set()
        for key, item in value.items():
            if key not in fields:
                meant.add(self._unknown(key, fields, value, path))
                continue
            field = fields[key]
            if item is None and not field.required and not _takes_null(field.type):
                continue  # a key with nothing after it, as good as none
            checked = self.check(item, field.type, (*path, key))
            if checked is not BAD:
                made[key] = checked
        for key, field in fields.items():
            if field.required and key not in value and f"did you mean {key}?" not in meant:
                hint = f": {_HINTS[key]}" if key in _HINTS else ""
                self._tell(path, f"`{key}` is missing{hint}")
        return self._remains(wanted, made, path)

    def _remains(self, wanted: inspect.StructType, made: dict[str, Any], path: Path) -> Any:
        """What is left of a struct: without what it requires, a step has a name that nobody reads."""
        if wanted.cls is Step and "id" not in made:
            made["id"] = f"unnamed_{'_'.join(str(part) for part in path if isinstance(part, int))}"
        return made if all(field.encode_name in made for field in wanted.fields if field.required) else BAD

    def _unknown(self, key: Any, fields: Mapping[str, Any], value: Mapping[str, Any], path: Path) -> str:
        other = _NEARLY.get(str(key))
        if other in fields and other not in value:
            hint = f"did you mean {other}?"
        else:
            hint = did_you_mean(str(key), fields, at_most=12)
        self._tell((*path, key), f"there is no such field; {hint}", key=True)
        return hint

    def _list(self, value: Any, wanted: inspect.VarTupleType | inspect.ListType, path: Path) -> Any:
        if not isinstance(value, list | tuple):
            name = path[-1] if path else "it"
            hint = f"; write `{name}: [{value}]`" if isinstance(value, str) and len(value) < 40 else ""
            return self._tell(path, f"expected a list, got {shown(value)}{hint}")
        least = getattr(wanted, "min_length", None)
        if least and len(value) < least:
            return self._tell(path, f"it is empty, and {least} is the least")
        items = [self.check(item, wanted.item_type, (*path, number)) for number, item in enumerate(value)]
        return BAD if BAD in items else items

    def _dict(self, value: Any, wanted: inspect.DictType, path: Path) -> Any:
        if not isinstance(value, Mapping):
            return self._tell(path, f"expected a map, got {shown(value)}")
        made: dict[str, Any] = {}
        for key, item in value.items():
            if isinstance(wanted.key_type, inspect.StrType) and (wrong := wrong_value(key, wanted.key_type)):
                self._tell((*path, key), f"as a name: {wrong}", key=True)
                continue
            checked = self.check(item, wanted.value_type, (*path, key))
            if checked is not BAD:
                made[key] = checked
        return made

    def _scalar(self, value: Any, wanted: inspect.Type, path: Path) -> Any:
        if isinstance(wanted, inspect.StrType) and isinstance(value, bool | int | float):
            if path and (path[-1] in EXPRESSIONS or path[0] == "outputs"):
                return _as_expression(value)
            if not isinstance(value, bool):
                return self._written(path) or str(value)
        if wrong := wrong_value(value, wanted):
            return self._tell(path, wrong)
        if isinstance(wanted, inspect.FloatType) and isinstance(value, int) and not isinstance(value, bool):
            return float(value) if abs(value) < 2**53 else value
        return value


def _takes_null(kind: inspect.Type) -> bool:
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return any(isinstance(one, inspect.NoneType | inspect.AnyType) for one in kinds)


def _as_expression(value: float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_of(value: Any, kind: inspect.Type) -> bool:
    """Whether a value is meant to be of a kind, by its own kind alone."""
    if isinstance(kind, inspect.NoneType):
        return value is None
    if isinstance(kind, inspect.StructType | inspect.DictType):
        return isinstance(value, Mapping)
    if isinstance(kind, inspect.VarTupleType | inspect.ListType):
        return isinstance(value, list | tuple)
    if isinstance(kind, inspect.LiteralType):
        return value in kind.values
    if isinstance(kind, inspect.StrType):
        return isinstance(value, str)
    return isinstance(kind, inspect.AnyType)


def wrong_value(value: Any, wanted: inspect.Type) -> str | None:
    """What is wrong with a scalar, as a sentence."""
    if isinstance(wanted, inspect.LiteralType):
        if value in wanted.values and not isinstance(value, bool):
            return None
        known = [str(one) for one in wanted.values]
        hint = f"; {near}" if isinstance(value, str) and (near := did_you_mean(value, known))[:3] == "did" else ""
        return f"expected {described(wanted)}, got {shown(value)}{hint}"
    if isinstance(wanted, inspect.StrType):
        if not isinstance(value, str):
            quotes = "; put quotes around it" if isinstance(value, bool) else ""
            return f"expected a text, got {shown(value)}{quotes}"
        if wanted.min_length and len(value) < wanted.min_length:
            return "it is empty"
        if wanted.max_length and len(value) > wanted.max_length:
            return f"{len(value)} characters, and {wanted.max_length} are the most"
        if wanted.pattern and not re.search(wanted.pattern, value):
            return f"expected a name of letters, digits and _, not beginning with a digit, got {shown(value)}"
        return None
    if isinstance(wanted, inspect.IntType | inspect.FloatType):
        whole = isinstance(wanted, inspect.IntType)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            return f"expected {described(wanted)}, got {shown(value)}{_unit_hint(value)}"
        return None if _in_range(value, wanted) else f"expected {described(wanted)}, got {shown(value)}"
    if isinstance(wanted, inspect.BoolType) and not isinstance(value, bool):
        return f"expected true or false, got {shown(value)}"
    return None


def _in_range(value: float, wanted: inspect.IntType | inspect.FloatType) -> bool:
    return (
        (wanted.ge is None or value >= wanted.ge)
        and (wanted.gt is None or value > wanted.gt)
        and (wanted.le is None or value <= wanted.le)
        and (wanted.lt is None or value < wanted.lt)
    )


def _unit_hint(value: Any) -> str:
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([\d.]+)\s*(\w*)\s*", value)):
        return f"; write {match[1]} without {'a unit' if match[2] else 'quotes'}"
    return ""


def _list_hint(path: Path, value: Any) -> str:
    if path and path[-1] == "for_each" and isinstance(value, list):
        return "; for a fixed list write it as an expression: for_each: \"['one', 'two']\""
    return ""


def described(wanted: inspect.Type) -> str:
    """What a type takes, in words."""
    if isinstance(wanted, inspect.LiteralType):
        return " or ".join(", ".join(map(str, wanted.values)).rsplit(", ", 1))
    if isinstance(wanted, inspect.StructType):
        required = [field.encode_name for field in wanted.fields if field.required and field.default is NODEFAULT]
        return f"a map with `{required[-1]}`" if required else "a map"
    if isinstance(wanted, inspect.IntType | inspect.FloatType):
        return ("a whole number" if isinstance(wanted, inspect.IntType) else "a number") + _range_of(wanted)
    names = {inspect.StrType: "a text", inspect.BoolType: "true or false", inspect.DictType: "a map"}
    return next((name for kind, name in names.items() if isinstance(wanted, kind)), "a list")


def _range_of(wanted: inspect.IntType | inspect.FloatType) -> str:
    if wanted.gt is not None and wanted.le is not None:
        return f" over {wanted.gt:g} and up to {wanted.le:g}"
    if wanted.ge is not None and wanted.le is not None:
        return f" from {wanted.ge:g} to {wanted.le:.17g}"
    return f", {wanted.ge:g} or more" if wanted.ge is not None else ""


def shown(value: Any) -> str:
    """A value as a person would recognise it, short."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a map"
    if isinstance(value, list | tuple):
        return "a list"
    return repr(value) if len(repr(value)) <= 48 else f"{repr(value)[:47]}…"
