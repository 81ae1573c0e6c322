"""Two daemons for all examples: one that reads and writes, one that also listens and speaks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.harness import Daemon, running
from tests.examples.harness import Shell


@contextmanager
def serving(*models: str) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="granville-", dir="/tmp") as folder:
        flags = ("--models", ",".join(models), "--slots", "4")
        with running(Path(folder), *flags, model="", driver="") as daemon:
            yield daemon


@pytest.fixture(scope="session")
def readers(smollm2: Path, minilm: Path) -> Iterator[Daemon]:
    with serving(f"main:{smollm2}", f"embedding:{minilm}") as daemon:
        yield daemon


@pytest.fixture(scope="session")
def speakers(smollm2: Path, whisper_tiny: Path, piper_joe: Path) -> Iterator[Daemon]:
    with serving(f"main:{smollm2}", f"stt:{whisper_tiny}", f"tts:{piper_joe}") as daemon:
        yield daemon


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="granville-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def shell(folder: Path, readers: Daemon) -> Shell:
    return Shell(folder, readers)


@pytest.fixture
def voice(folder: Path, speakers: Daemon) -> Shell:
    return Shell(folder, speakers)
