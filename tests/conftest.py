"""The real model, fetched once into the user's own store and shared by every test that needs one."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from granville.models.store import obtain


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return trio.run(obtain, "smollm2")
