"""The tiny models, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drivers import tiny_gguf


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def noise(models: Path) -> Path:
    """Random weights: every answer depends on the whole prompt and never ends by itself."""
    return tiny_gguf.noise(models / "noise.gguf")


@pytest.fixture(scope="session")
def alphabet(models: Path) -> Path:
    """Says "abcdefgh" and ends."""
    return tiny_gguf.alphabet(models / "alphabet.gguf", tiny_gguf.follows("\nabcdefgh", tiny_gguf.EOS))
