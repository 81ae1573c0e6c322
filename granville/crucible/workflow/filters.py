"""The filters and tests of expressions. Each says what it takes, and pays for its work before it does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial, wraps
from typing import Any, Literal

import msgspec
from jinja2 import Undefined
from jinja2.filters import FILTERS, do_round
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.tests import test_defined, test_undefined

from granville.crucible.workflow.bounds import (
    CHARS_PER_UNIT,
    MAX_RANGE,
    TemplateError,
    current_work,
    within_number,
    within_text,
)

MAX_INDENT = 100
MAX_ROUND_DIGITS = 20
Filter = Callable[..., Any]


def kind_of(value: Any) -> str:
    kinds = {str: "text", bytes: "audio", bool: "a boolean", int: "a number", float: "a number", dict: "a map"}
    return "null" if value is None else kinds.get(type(value), "a list")


def text_of(value: Any) -> str:
    """As it stands in a text: null is nothing; lists, maps, booleans are JSON. Raises TemplateError."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bytes):
        raise TemplateError(f"{len(value)} bytes of audio cannot be put into a text")
    if isinstance(value, Undefined):
        return str(value)
    return tojson(value)


def _list(value: Any, name: str) -> list[Any]:
    """Its items, counted, for filters that go through a list."""
    if isinstance(value, str | bytes | int | float) or value is None:
        hint = "; `split` makes a list of a text" if isinstance(value, str) else ""
        raise TemplateError(f"`{name}` goes through a list, and was given {kind_of(value)}{hint}")
    return list(current_work.get().counted(value))


def tojson(value: Any, indent: int = 0) -> str:
    try:
        current_work.get().weigh(value)
        encoded = msgspec.json.encode(value)
        text = (msgspec.json.format(encoded, indent=_small(indent, MAX_INDENT)) if indent else encoded).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TemplateError(f"`tojson`: cannot be written as JSON: {error}") from None
    within_text(len(text))
    return text


def fromjson(value: Any) -> Any:
    if not isinstance(value, str):
        raise TemplateError(f"`fromjson` reads text, and was given {kind_of(value)}")
    try:
        current_work.get().spend(len(value) // 4)
        return msgspec.json.decode(value)
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"`fromjson`: not JSON: {error}") from None


def _small(number: Any, most: int) -> int:
    if not isinstance(number, int) or not 0 <= number <= most:
        raise TemplateError(f"expected a whole number from 0 to {most}, got {str(number)[:20]}")
    return number


def join(value: Any, separator: Any = "", attribute: str | int | None = None) -> str:
    items = _list(value, "join")
    if attribute is not None:
        items = [_part(item, attribute) for item in items]
    texts = [text_of(item) for item in items]
    between = text_of(separator)
    chars = sum(map(len, texts)) + len(between) * len(texts)
    within_text(chars)
    current_work.get().glance(between)
    return between.join(texts)


def _part(item: Any, attribute: str | int) -> Any:
    try:
        return item[attribute] if isinstance(item, dict) or isinstance(attribute, int) else ""
    except (LookupError, TypeError):
        raise TemplateError(f"there is no {attribute!r} in {kind_of(item)}") from None


def replace(value: Any, old: Any, new: Any) -> str:
    text, old, new = text_of(value), text_of(old), text_of(new)
    if not old:
        raise TemplateError("`replace`: the text to be replaced is empty")
    chars = len(text) + text.count(old) * (len(new) - len(old))
    within_text(chars)
    current_work.get().spend(chars // CHARS_PER_UNIT + 1)
    return text.replace(old, new)


def indent(value: Any, width: int = 4, first: bool = False) -> str:
    text, pad = text_of(value), " " * _small(width, MAX_INDENT)
    within_text(len(text) + len(pad) * (text.count("\n") + 1))
    lines = _pieces(text, "\n")
    return "\n".join(pad + line if line and (first or number) else line for number, line in enumerate(lines))


def _pieces(text: str, separator: str) -> list[str]:
    current_work.get().spend(text.count(separator) + 1)
    return text.split(separator)


def split(value: Any, separator: str | None = None) -> list[str]:
    if not isinstance(value, str):
        raise TemplateError(f"`split` takes text, and was given {kind_of(value)}")
    if separator is None:
        current_work.get().spend(len(value) // 2)
        return value.split()
    if not separator:
        raise TemplateError("`split`: the separator is empty; leave it out to split at spaces")
    return _pieces(value, separator)


def as_list(value: Any) -> list[Any]:
    return list(current_work.get().counted(value)) if isinstance(value, str) else _list(value, "list")


def flat(value: Any) -> list[Any]:
    """A list of lists as one list, one level of it."""
    lists = _list(value, "flat")
    for one in lists:
        if not isinstance(one, list | tuple):
            raise TemplateError(f"`flat` joins lists, and one is {kind_of(one)}")
    return [item for one in lists for item in current_work.get().counted(one)]


def total(value: Any, attribute: str | None = None, start: float = 0) -> float:
    items = _list(value, "sum")
    numbers = [start, *(items if attribute is None else (_part(item, attribute) for item in items))]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TemplateError(f"`sum` adds numbers, and one is {kind_of(number)}")
    added: float = sum(numbers)
    return added


def rounded(value: Any, precision: int = 0, method: Literal["common", "ceil", "floor"] = "common") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TemplateError(f"`round` takes a number, and was given {kind_of(value)}")
    digits: float = do_round(value, _small(precision, MAX_ROUND_DIGITS), method)
    return digits


def batch(value: Any, size: int) -> list[list[Any]]:
    items = _list(value, "batch")
    if not isinstance(size, int) or size < 1:
        raise TemplateError("`batch`: the size is a whole number, 1 or more")
    return [items[start : start + size] for start in range(0, len(items), size)]


def _map_only(name: str, function: Callable[[dict[str, Any]], Iterable[Any]]) -> Filter:
    def of_map(value: Any) -> list[Any]:
        if not isinstance(value, dict):
            raise TemplateError(f"`{name}` takes a map, and was given {kind_of(value)}")
        return [list(one) if isinstance(one, tuple) else one for one in function(value)]

    return of_map


def spread(*bounds: int) -> list[int]:
    """Jinja's `range`, as a list of a bounded length."""
    numbers = range(*bounds)
    if len(numbers) > MAX_RANGE:
        raise TemplateError(f"`range` of {len(numbers)} numbers, and {MAX_RANGE} are the most")
    current_work.get().spend(len(numbers))
    return list(numbers)


def _passes_context(function: Filter) -> bool:
    return hasattr(function, "jinja_pass_arg")


def _paid(
    name: str, function: Filter, *, deep: bool = False, takes: Callable[[Any], Any] = lambda value: value
) -> Filter:
    """A filter that spends for what it is given, refuses what it would take apart oddly, and gives lists and not
    generators."""

    @wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        work = current_work.get()
        first = 1 if _passes_context(function) else 0
        value, rest = args[first], args[first + 1 :]
        if name not in ("default", "d"):
            refuse_undefined(value)
        if takes is not None:
            value = takes(value)
        for one in (value, *rest, *kwargs.values()):
            (work.weigh if deep else work.glance)(one)
        if deep and isinstance(value, list):
            # Sorting compares each with about log n others.
            work.spend(len(value) * len(value).bit_length())
        result = function(*args[:first], value, *rest, **kwargs)
        if hasattr(result, "__next__"):
            result = list(work.counted(result))
        if isinstance(result, int | float) and not isinstance(result, bool):
            within_number(result)
        elif isinstance(result, str):
            within_text(len(result))
        return result

    return paid


def refuse_undefined(value: Any) -> None:
    if isinstance(value, Undefined):
        str(value)


def _tested(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def tested(*args: Any) -> Any:
        for one in args:
            refuse_undefined(one)
            current_work.get().weigh(one)
        return function(*args)

    return tested


_SHALLOW = ("abs", "count", "default", "first", "float", "int", "last", "length", "reverse")
_OF_TEXT = ("capitalize", "lower", "title", "trim", "truncate", "upper", "wordcount")
_THROUGH = ("map", "reject", "rejectattr", "select", "selectattr")
_COMPARING = ("groupby", "max", "min", "sort", "unique")
_OURS: dict[str, Filter] = {
    "batch": batch, "flat": flat, "fromjson": fromjson, "indent": indent, "items": _map_only("items", dict.items),
    "join": join, "keys": _map_only("keys", dict.keys), "list": as_list, "replace": replace, "round": rounded,
    "split": split, "string": text_of, "sum": total, "tojson": tojson, "values": _map_only("values", dict.values),
}  # fmt: skip
filters: dict[str, Filter] = {
    **{name: _paid(name, FILTERS[name]) for name in _SHALLOW},
    "d": _paid("d", FILTERS["default"]),
    "dictsort": _paid("dictsort", FILTERS["dictsort"], deep=True),
    **{name: _paid(name, FILTERS[name], takes=text_of) for name in _OF_TEXT},
    **{name: _paid(name, FILTERS[name], takes=partial(_list, name=name)) for name in _THROUGH},
    **{name: _paid(name, FILTERS[name], deep=True, takes=partial(_list, name=name)) for name in _COMPARING},
    **{name: _paid(name, function) for name, function in _OURS.items()},
}
_PLAIN_TESTS = (
    "boolean", "divisibleby", "even", "false", "float", "in", "integer", "iterable", "mapping", "none", "number",
    "odd", "sequence", "string", "true", "eq", "equalto", "==", "ne", "!=", "lt", "lessthan", "<", "le", "<=", "gt",
    "greaterthan", ">", "ge", ">=",
)  # fmt: skip
_JINJAS_TESTS: Mapping[str, Any] = JINJA_TESTS
tests: dict[str, Callable[..., Any]] = {
    "defined": test_defined,
    "undefined": test_undefined,
    **{name: _tested(_JINJAS_TESTS[name]) for name in _PLAIN_TESTS},
    "starting_with": _tested(lambda value, start: isinstance(value, str) and value.startswith(start)),
    "ending_with": _tested(lambda value, end: isinstance(value, str) and value.endswith(end)),
}
