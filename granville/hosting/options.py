"""A driver's options, checked before anything is loaded: what its `config_schema` says, where each value came from,
and whose goes first.

A `config_schema` is a flat JSON Schema of an object (docs/drivers.md has the keywords). msgspec does the checking: each
property becomes a type of its own, which also says how the text of a `key=value` is read. An option that the schema
does not name is refused, unless the schema says `additionalProperties: true`; so is a schema with a keyword that would
not be checked.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from granville.errors import StartupError
from granville.hosting.interface import Configurable, Driver

SPEC_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "context_size": {"type": "integer", "minimum": 0, "description": "tokens a slot; 0 is the driver's choice"},
    "threads": {"type": "integer", "minimum": 0, "description": "threads of the model; 0 is the driver's choice"},
}
"""Options of every driver: they are fields of the ModelSpec, whatever way they were given."""
MAX_OPTIONS = 256
MAX_VALUE_CHARS = 80
"""Of a wrong value, in the sentence that says so."""

_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "$comment"}
_LIMITS = {
    "minimum": "ge", "maximum": "le", "exclusiveMinimum": "gt", "exclusiveMaximum": "lt", "multipleOf": "multiple_of",
    "minLength": "min_length", "maxLength": "max_length", "pattern": "pattern",
}  # fmt: skip
"""JSON Schema's keyword to msgspec's."""
_TYPES: dict[str, Any] = {
    "integer": int, "number": float, "string": str, "boolean": bool, "null": None, "array": list, "object": dict,
}  # fmt: skip
_SCHEMA = {"type", "properties", "required", "additionalProperties", "$schema", "$id", *_ANNOTATIONS}
_NOUNS = {
    "integer": "a whole number", "number": "a number", "string": "a text", "boolean": "true or false",
    "array": "a list", "object": "a map", "null": "null",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """Options from one place."""

    source: str
    """What a person calls the place: a flag, a variable, a file."""
    values: Mapping[str, object]
    text: bool = False
    """Values are strings as they were typed, to be read by the option's type."""
    shared: bool = False
    """Meant for all models: an option that this driver does not have may be another's."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Where in `source` an option stands, where that is known: `manifest.yaml:7:5`."""

    def where(self, key: str) -> str:
        return self.places.get(key, f"{self.source}: {key}")


class WrongOption(Exception):
    """A value that does not fit; the message says what would."""


class OptionSchema:
    """What the options of one owner may be. Raises StartupError for a schema that cannot be used."""

    def __init__(self, owner: str, schema: Mapping[str, Any]) -> None:
        self.owner = owner
        if not isinstance(schema, Mapping):
            raise StartupError(f"{owner}: its config_schema is no JSON object")
        unchecked = [key for key in schema if key not in _SCHEMA]
        properties = schema.get("properties", {})
        if unchecked or schema.get("type", "object") != "object" or not isinstance(properties, Mapping):
            what = f"the keyword {unchecked[0]!r}" if unchecked else "what is not an object with properties"
            raise StartupError(f"{owner}: its config_schema has {what}, which Granville does not check")
        if len(properties) > MAX_OPTIONS:
            raise StartupError(f"{owner}: its config_schema has {len(properties)} options, {MAX_OPTIONS} are the most")
        self.properties: dict[str, Mapping[str, Any]] = dict(properties)
        self.required: tuple[str, ...] = tuple(schema.get("required", ()))
        self.open = schema.get("additionalProperties", False) is not False
        self._types = {key: self._type(key, one) for key, one in properties.items()}

    def check(self, key: str, value: object, *, text: bool = False) -> object:
        """The value as the driver wants it. Raises WrongOption for one that does not fit, or an unknown key."""
        if key not in self._types:
            if self.open:
                return _read(value) if text else value
            raise WrongOption(self._unknown(key))
        try:
            return msgspec.convert(value, self._types[key], strict=not text)
        except msgspec.ValidationError:
            shown = repr(value)
            shown = shown if len(shown) <= MAX_VALUE_CHARS else f"{shown[:MAX_VALUE_CHARS]}…"
            raise WrongOption(f"expected {wanted(self.properties[key])}, got {shown}") from None

    def knows(self, key: str) -> bool:
        return self.open or key in self._types

    def _unknown(self, key: str) -> str:
        near = difflib.get_close_matches(key, self._types, n=2, cutoff=0.6)
        known = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(self._types) or 'none'}"
        return f"{self.owner} has no such option; {known}"

    def _type(self, key: str, schema: Any) -> Any:
        try:
            made = _type_of(schema)
            msgspec.convert(None, made | None)
        except (TypeError, ValueError, re.error) as error:
            raise StartupError(f"{self.owner}: its config_schema cannot be used, at {key}: {error}") from None
        return made


def _type_of(schema: Any) -> Any:
    """The msgspec type of a property. Raises TypeError or ValueError for a schema that it cannot check."""
    if not isinstance(schema, Mapping):
        raise TypeError("expected a schema, an object")
    keys = schema.keys() - _ANNOTATIONS
    if "anyOf" in keys:
        _only(keys, {"anyOf"})
        made = None
        for index, part in enumerate(schema["anyOf"]):
            made = _type_of(part) if index == 0 else made | _type_of(part)
        return made
    if "enum" in keys:
        _only(keys, {"enum", "type"})
        return Literal[tuple(schema["enum"])]
    kind = schema.get("type")
    if isinstance(kind, list):
        return _type_of({"anyOf": [{**schema, "type": one} for one in kind]})
    if kind not in _TYPES:
        raise ValueError(f"type {kind!r}; it can be {', '.join(_TYPES)}")
    _only(keys, {"type", "items", *_LIMITS} if kind == "array" else {"type", *_LIMITS})
    made = _TYPES[kind]
    if kind == "array":
        items = _type_of(schema["items"]) if "items" in schema else Any
        made = list[items]  # type: ignore[valid-type]  # made at run time
    limits = {_LIMITS[key]: schema[key] for key in keys if key in _LIMITS}
    return Annotated[made, msgspec.Meta(**limits)] if limits else made


def _only(keys: Iterable[str], known: set[str]) -> None:
    for key in keys:
        if key not in known:
            raise ValueError(f"the keyword {key!r} is not checked")


def wanted(schema: Mapping[str, Any]) -> str:
    """What a schema accepts, in words."""
    if "anyOf" in schema:
        return " or ".join(wanted(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    kind = schema.get("type", "")
    if isinstance(kind, list):
        return " or ".join(wanted({**schema, "type": one}) for one in kind if one != "null")
    words = _NOUNS[kind]
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None:
        words += f" from {low} up" if high is None else f" from {low} to {high}"
    elif high is not None:
        words += f" up to {high}"
    for key, phrase in (("exclusiveMinimum", "over"), ("exclusiveMaximum", "under"), ("multipleOf", "a multiple of"),
                        ("pattern", "of the pattern")):  # fmt: skip
        words += f" {phrase} {schema[key]}" if key in schema else ""
    return words


def schema_of(driver: Driver) -> OptionSchema | None:
    """What the driver says of its options, and those that every driver has; None when it says nothing."""
    schema = driver.config_schema if isinstance(driver, Configurable) else None
    if schema is None:  # a driver.json need not have one
        return None
    properties = {**SPEC_OPTIONS, **schema["properties"]} if "properties" in schema else SPEC_OPTIONS
    return OptionSchema(driver.name, {**schema, "properties": properties})


def merge_options(driver: Driver, layers: Sequence[Layer], others: Sequence[Driver] = ()) -> dict[str, object]:
    """The options for a model of the driver, out of layers of which an earlier one goes before a later one.

    Every layer is checked, also where another goes before it. A shared layer's option that this driver does not have
    is left out where one of the `others` has it. A driver without a schema gets what was given, `key=value` read as
    JSON where it can be; it has to check by itself. Raises StartupError that names the place and what would be right.
    """
    schema = schema_of(driver)
    merged: dict[str, object] = {}
    for layer in layers:
        for key, value in layer.values.items():
            try:
                checked = _checked(schema, layer, key, value)
            except WrongOption as error:
                if layer.shared and schema and not schema.knows(key) and any(_has(one, key) for one in others):
                    continue
                raise StartupError(f"{layer.where(key)}: {error}") from None
            merged.setdefault(key, checked)
    missing = [key for key in schema.required if key not in merged] if schema else []
    if missing:
        raise StartupError(f"{driver.name} needs the option {missing[0]}: --driver-config {missing[0]}=VALUE")
    return merged


def _checked(schema: OptionSchema | None, layer: Layer, key: str, value: object) -> object:
    if schema is not None:
        return schema.check(key, value, text=layer.text)
    if key in SPEC_OPTIONS:
        return _SPEC_SCHEMA.check(key, value, text=layer.text)
    return _read(value) if layer.text else value


def _has(driver: Driver, key: str) -> bool:
    schema = schema_of(driver)
    return schema is None or schema.knows(key)


_SPEC_SCHEMA = OptionSchema("every driver", {"type": "object", "properties": SPEC_OPTIONS})


def built_in(driver: Driver) -> list[Layer]:
    """The options that an installed driver comes with (`config` of its driver.json), weakest of all."""
    config = getattr(driver, "config", None)
    return [Layer(f"driver.json of {driver.name}", config)] if isinstance(config, Mapping) else []


def pairs_layer(source: str, pairs: Iterable[str], *, shared: bool = True) -> Layer:
    """Out of `key=value` texts. Raises StartupError for one that is none, or a key that comes twice."""
    values: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise StartupError(f"{source}: expected key=value, got {pair!r}")
        if key in values and values[key] != value:
            raise StartupError(f"{source}: {key} is given twice, as {values[key]} and as {value}")
        values[key] = value
    return Layer(source, values, text=True, shared=shared)


def unchecked(layer: Layer) -> dict[str, object]:
    """A layer's options as a driver without a schema gets them."""
    return {key: _checked(None, layer, key, value) for key, value in layer.values.items()}


def _read(value: object) -> object:
    """A typed text as JSON where it can be, else as it is."""
    try:
        return msgspec.json.decode(str(value))
    except msgspec.DecodeError:
        return value
