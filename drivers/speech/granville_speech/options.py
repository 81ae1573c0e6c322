"""A driver's options, from one struct: their JSON Schema and their checks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from granville.hosting.interface import DriverError, ModelSpec

T = TypeVar("T", bound=msgspec.Struct)


def about(text: str, ge: float | None = None, le: float | None = None) -> msgspec.Meta:
    """What an option takes, in words that are part of the message for a wrong value, and its bounds."""
    return msgspec.Meta(description=text, ge=ge, le=le)


def schema_of(options: type[msgspec.Struct]) -> Mapping[str, Any]:
    """JSON Schema of a flat struct, an object without references."""
    schema: dict[str, Any] = msgspec.json.schema(options)["$defs"][options.__name__]
    return schema


def read_options(driver: str, options: type[T], given: Mapping[str, object]) -> T:
    """Raises DriverError that names the option and what it takes."""
    properties = schema_of(options)["properties"]
    for name, value in given.items():
        if name not in properties:
            raise DriverError(f"{driver} has no option {name!r}; it has {', '.join(properties)}")
        try:
            msgspec.convert({name: value}, options)
        except msgspec.ValidationError:
            raise DriverError(f"option {name}: got {value!r}; it is {properties[name]['description']}") from None
    return msgspec.convert(dict(given), options)


def check_spec(driver: str, spec: ModelSpec, type: str) -> None:
    """Raises DriverError for what no model of one type can be."""
    if spec.type != type:
        raise DriverError(f"type: {driver} serves {type}, not {spec.type}: {type}:PATH says so")
    for name, number, least in (("slots", spec.slots, 1), ("threads", spec.threads, 0)):
        if number < least:
            raise DriverError(f"{name}: must be {least} or more, got {number}")


def usable_cores() -> int:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
