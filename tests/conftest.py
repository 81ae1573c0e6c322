"""The real models, fetched once and shared by every test that needs one; and which tests run in Trio's time, where the
clock jumps to the next deadline when nothing is left to do."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from examples.models import minilm as minilm_wheel
from granville.models.store import obtain

IN_TRIO_TIME = ("nursery", "crucible")
"""Folders whose asynchronous tests do, but for those marked real_time."""
T = TypeVar("T")


def _run_jumping(
    main: Callable[[], Awaitable[T]], *, clock: trio.abc.Clock | None, instruments: Sequence[trio.abc.Instrument]
) -> T:
    return trio.run(main, clock=clock or trio.testing.MockClock(autojump_threshold=0), instruments=instruments)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not isinstance(item, pytest.Function) or not inspect.iscoroutinefunction(item.function):
            continue
        if item.path.parent.name in IN_TRIO_TIME and not item.get_closest_marker("real_time"):
            item.add_marker(pytest.mark.trio(run=_run_jumping))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return trio.run(obtain, "smollm2")


@pytest.fixture(scope="session")
def minilm(request: pytest.FixtureRequest) -> Path:
    """all-MiniLM-L6-v2, made once and kept in pytest's cache."""
    return minilm_wheel.minilm(request.config.cache.mkdir("minilm"))


@pytest.fixture(scope="session")
def whisper_tiny() -> Path:
    """Whisper tiny.en for CTranslate2, a folder."""
    return trio.run(obtain, "whisper-tiny.en")


@pytest.fixture(scope="session")
def piper_joe() -> Path:
    """Piper's voice en_US-joe-medium, a folder."""
    return trio.run(obtain, "joe")
