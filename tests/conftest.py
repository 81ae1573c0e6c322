"""The real model, fetched once into the user's own store and shared by every test that needs one."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from examples.models import minilm as minilm_wheel
from granville.models.store import obtain


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
