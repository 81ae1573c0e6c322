"""The tools that come with Crucible."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Meta

from granville.crucible.tools.diff import parse_diff
from granville.crucible.tools.files import list_files, read_file, write_file
from granville.crucible.tools.function import tool
from granville.crucible.tools.http import http_get
from granville.crucible.tools.interface import Tool, ToolFailed
from granville.crucible.tools.retrieval import index, search
from granville.crucible.workflow.bounds import TemplateError
from granville.crucible.workflow.templates import evaluate

MAX_EXPRESSION_CHARS = 1000
CONSTANTS = {"pi": 3.141592653589793, "e": 2.718281828459045}


@tool
async def value(value: Any) -> Any:
    """Gives what it is given: for a step that puts a value together without a model."""
    return value


@tool
async def now(
    zone: Annotated[str, Meta(max_length=64, description="such as Europe/Paris")] = "UTC",
) -> str:
    """The time now, as ISO 8601 with its distance from UTC."""
    if zone == "UTC":  # also where there is no time zone database
        return datetime.now(UTC).isoformat(timespec="seconds")
    try:
        return datetime.now(ZoneInfo(zone)).isoformat(timespec="seconds")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolFailed(f"now: there is no zone {zone!r}; expected one such as Europe/Paris") from None


@tool
async def calculate(
    expression: Annotated[
        str, Meta(max_length=MAX_EXPRESSION_CHARS, description="numbers, + - * / // % ** and parentheses; pi and e")
    ],
) -> float:
    """Work out an arithmetic expression, such as `(12.5 + 3) * 4`."""
    try:
        result = evaluate(expression, CONSTANTS)
    except TemplateError as error:
        raise ToolFailed(f"calculate: {error.message}") from None
    if isinstance(result, bool) or not isinstance(result, int | float):
        raise ToolFailed("calculate: that is no number; expected arithmetic, such as (12.5 + 3) * 4")
    return result


BUILTIN: tuple[Tool, ...] = (
    calculate, http_get, index, list_files, now, parse_diff, read_file, search, value, write_file,
)  # fmt: skip
