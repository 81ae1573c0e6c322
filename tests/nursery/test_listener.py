"""The doors: held by one daemon, cleaned up by whoever opened them, and closed before the last clients leave."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import trio

from granville.config import ServeConfig
from granville.doors.sockets import unix_listener
from granville.hosting.interface import ModelSpec
from granville.nursery.kernel import FLUSH_S, Serving, run_kernel
from granville.nursery.pool import ModelPlan
from granville.scheduling.roster import ModelEntry
from granville.testing.fake import FakeDriver, FakePlan, TrioStepper


@pytest.mark.parametrize("name", ["g.sock", "g.sock.lock"])
def test_a_file_that_somebody_removed_is_not_missed(tmp_path: Path, name: str) -> None:
    with unix_listener(str(tmp_path / "g.sock")):
        os.unlink(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_the_next_daemon_are_left_alone(tmp_path: Path) -> None:
    """After a cleaner of temporary files has removed ours, and another daemon has come to the same place."""
    path = str(tmp_path / "g.sock")
    first = unix_listener(path)
    first.__enter__()
    os.unlink(path)
    os.unlink(f"{path}.lock")
    with unix_listener(path):
        first.__exit__(None, None, None)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["g.sock", "g.sock.lock"]


async def test_a_client_that_comes_back_at_once_does_not_hold_up_the_end(tmp_path: Path) -> None:
    path = str(tmp_path / "g.sock")
    load = partial(FakeDriver(FakePlan(), sleeps=False).load, ModelSpec(Path("fake.gguf")))
    plan = ModelPlan(ModelEntry("fake-0", "inference", "fake.gguf", "fake"), partial(TrioStepper, load))
    async with trio.open_nursery() as nursery:  # the daemon beside its client
        serving: Serving = await nursery.start(run_kernel, ServeConfig(socket=path), [plan])

        async def stay_connected() -> None:
            while True:
                try:
                    async with await trio.open_unix_socket(path) as stream:
                        await stream.receive_some(1)
                except OSError:
                    return

        for _ in range(3):
            nursery.start_soon(stay_connected)
        await trio.testing.wait_all_tasks_blocked(0.01)
        serving.desk.stop()
        began = trio.current_time()
        await serving.ended.wait()
        assert trio.current_time() - began < FLUSH_S / 2
