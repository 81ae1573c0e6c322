"""The real model, fetched once into the user's own store and shared by every test that needs one."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from granville.models.store import obtain
from tests.drivers import bert_gguf


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return trio.run(obtain, "smollm2")


@pytest.fixture(scope="session")
def minilm(request: pytest.FixtureRequest) -> Path:
    """all-MiniLM-L6-v2, made once and kept in pytest's cache."""
    return bert_gguf.minilm(request.config.cache.mkdir("minilm"))
