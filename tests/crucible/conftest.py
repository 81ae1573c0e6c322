"""Tests here run in Trio's time: it jumps to the next deadline when nothing is left to do."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

T = TypeVar("T")


def _run_jumping(
    main: Callable[[], Awaitable[T]], *, clock: trio.abc.Clock | None, instruments: Sequence[trio.abc.Instrument]
) -> T:
    return trio.run(main, clock=clock or trio.testing.MockClock(autojump_threshold=0), instruments=instruments)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if not isinstance(item, pytest.Function) or not inspect.iscoroutinefunction(item.function):
            continue
        if item.path.parent == here and not item.get_closest_marker("real_time"):
            item.add_marker(pytest.mark.trio(run=_run_jumping))
