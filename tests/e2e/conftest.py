"""Short folders for sockets, and a daemon for each module of tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.crucible import Crucible, crucible_serving
from tests.e2e.harness import Daemon, running


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: a Unix socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="granville-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One daemon for the module, with the flags and the driver's settings that the module names (`FLAGS`, `CONFIG`).
    It must end well after all that the tests have done to it."""
    flags: tuple[str, ...] = getattr(request.module, "FLAGS", ())
    config = {"decode_s": 0.005} | getattr(request.module, "CONFIG", {})
    with tempfile.TemporaryDirectory(prefix="granville-", dir="/tmp") as path:
        with running(Path(path), *flags, config=config) as daemon:
            yield daemon
            assert daemon.stop() == 0
            assert "level=ERROR" not in daemon.log
        assert not daemon.socket.exists()


@pytest.fixture(scope="module")
def serving(daemon: Daemon) -> Iterator[Crucible]:
    """One `crucible serve` for the module, above the module's Granville."""
    with tempfile.TemporaryDirectory(prefix="crucible-", dir="/tmp") as path:
        with crucible_serving(Path(path), daemon.socket, "--tcp", "127.0.0.1:0") as serving:
            yield serving
            assert serving.stop() == 0
            assert "level=ERROR" not in serving.log
        assert not (Path(path) / "c.sock").exists()
