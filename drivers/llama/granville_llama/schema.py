"""JSON schemas from users: bounded before anything compiles them, and the place of what does not compile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from granville_llama.gbnf import GrammarError

MAX_SOURCE_CHARS = 512 * 1024
MAX_NESTING = 64
"""Of maps and lists; serde, which reads the schema in llguidance, takes 128."""
MAX_ENUM = 20_000
MAX_LITERAL_CHARS = 4096
"""Of a constant: it is forced on the model, and looked at whole for each token."""
SEPARATORS = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "whitespace_pattern": None}
"""Between values just what Python's `json.dumps` writes: a small model otherwise goes on with spaces for ever."""

MAPS_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
SCHEMAS = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
MOST = {"properties": 400, "patternProperties": 100, "$defs": 1000, "definitions": 1000, "anyOf": 512, "oneOf": 512,
        "allOf": 32, "prefixItems": 512, "required": 400, "enum": MAX_ENUM}  # fmt: skip
"""Entries of a keyword's map or list; beyond, compiling takes more than a fraction of a second."""
COMPOSING = ("anyOf", "oneOf", "$ref")
MAX_BLAME_TRIALS = 64

Schema = dict[str, Any]
Compile = Callable[[Schema], str | None]
"""What is wrong with a schema, None when it compiles."""


def read_schema(source: str) -> Schema:
    """A schema from its JSON, ready to be compiled. Raises GrammarError, which says where."""
    if len(source) > MAX_SOURCE_CHARS:
        raise GrammarError(f"it has {len(source)} characters, and {MAX_SOURCE_CHARS} are the most")
    try:
        schema = json.loads(source)
    except RecursionError:
        raise GrammarError(f"nested deeper than {MAX_NESTING} levels") from None
    except ValueError as error:
        raise GrammarError(f"not JSON: {error}") from None
    return prepare({} if schema is True else schema)


def prepare(schema: object) -> Schema:
    """A copy within bounds, in which an object has no properties but those that are named unless it says that it may:
    as llama.cpp does it, and every answer still fits the schema as it was. Raises GrammarError."""
    if not isinstance(schema, Mapping):
        raise GrammarError(f"at #: a schema is a map, got {json.dumps(schema)[:40]}")
    _check(schema, "#", 1)
    try:
        copy: Schema = json.loads(json.dumps(schema))
    except (TypeError, ValueError) as error:
        raise GrammarError(f"cannot be written as JSON: {error}") from None
    # llguidance's own settings may make an answer that is not JSON.
    copy.pop("x-guidance", None)
    nodes = [node for _, node in _subschemas(copy)]
    if not any("allOf" in node or ("properties" in node and any(key in node for key in COMPOSING)) for node in nodes):
        for node in nodes:
            if "properties" in node and "patternProperties" not in node:
                node.setdefault("additionalProperties", False)
    return copy


def blame(schema: Schema, compile: Compile) -> str:
    """The path to the innermost part of a schema that does not compile by itself either."""
    root: Schema = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    path, trials = "#", 0
    while True:
        for step, child in _children(schema):
            if step.startswith(("/$defs/", "/definitions/")) and path != "#":
                continue
            trials += 1
            if trials > MAX_BLAME_TRIALS:
                return path
            if compile({**root, **child}) is not None:
                path, schema = path + step, child
                break
        else:
            return path


def _check(value: object, path: str, depth: int) -> None:
    """Bounds of every map and list, wherever it stands."""
    if depth > MAX_NESTING:
        raise GrammarError(f"at {path[:80]}: nested deeper than {MAX_NESTING} levels")
    if isinstance(value, Mapping):
        for key, item in value.items():
            most = MOST.get(key)
            if most is not None and isinstance(item, Mapping | list) and len(item) > most:
                raise GrammarError(f"at {path}/{key}: {len(item)} entries, and {most} are the most")
            _check(item, f"{path}/{key}", depth + 1)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check(item, f"{path}/{number}", depth + 1)
    elif isinstance(value, str) and len(value) > MAX_LITERAL_CHARS:
        raise GrammarError(f"at {path}: {len(value)} characters, and {MAX_LITERAL_CHARS} are the most")


def _children(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The schemas directly inside of one, with the steps to them."""
    for keyword in MAPS_OF_SCHEMAS:
        entries = schema.get(keyword)
        if isinstance(entries, dict):
            yield from ((f"/{keyword}/{key}", entry) for key, entry in entries.items() if isinstance(entry, dict))
    for keyword in LISTS_OF_SCHEMAS:
        entries = schema.get(keyword)
        if isinstance(entries, list):
            yield from ((f"/{keyword}/{n}", entry) for n, entry in enumerate(entries) if isinstance(entry, dict))
    for keyword in SCHEMAS:
        entry = schema.get(keyword)
        if isinstance(entry, dict):
            yield f"/{keyword}", entry


def _subschemas(schema: Schema, path: str = "#") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for step, child in _children(schema):
        yield from _subschemas(child, path + step)
