"""A process in a group of its own, so that it ends with all that it has started."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

import trio

from granville.client.background import Background
from granville.crucible.tools.interface import ToolFailed

KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "USER", "LOGNAME")
"""All that a process gets of the environment here: no key or password that somebody has exported."""
REAP_S = 5.0
"""For a killed process to be gone; the kernel may hold one that waits for a disk."""
DRAIN_S = 1.0
"""For output that is still on its way when the process has ended, or that what it has left behind holds open."""


@dataclass(frozen=True, slots=True)
class Ended:
    status: int
    """The exit status; negative for the signal that it ended by."""
    stdout: bytes
    stderr: bytes
    cut: bool
    """It said more than it may, and was ended for that."""


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    return {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ} | dict(more or {})


@asynccontextmanager
async def process_group(
    command: Sequence[str], *, folder: Path, env: Mapping[str, str], grace_s: float = 0.0
) -> AsyncIterator[trio.Process]:
    """A process with pipes for the length of the body; then its whole group is gone. With a `grace_s` its stdin is
    closed first, then it gets a SIGTERM, and that long after each; SIGKILL ends what is left.

    Raises ToolFailed when it cannot be started.
    """
    try:
        process = await trio.lowlevel.open_process(
            list(command), stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=folder, env=dict(env), start_new_session=True
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ToolFailed(f"{command[0]} cannot be started in {folder}: {reason}") from None
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await _end(process, grace_s)


async def _end(process: trio.Process, grace_s: float) -> None:
    if grace_s > 0:
        if process.stdin is not None:
            await process.stdin.aclose()
        with trio.move_on_after(grace_s):
            await process.wait()
    if grace_s > 0 and process.poll() is None:
        signal_group(process, signal.SIGTERM)
        with trio.move_on_after(grace_s):
            await process.wait()
    signal_group(process, signal.SIGKILL)
    with trio.move_on_after(REAP_S):
        await process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            await pipe.aclose()


def signal_group(process: trio.Process, number: int) -> None:
    # Its id is the process's, which led it, and stays the group's while anyone is in it.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


async def run_process(
    command: Sequence[str], *, folder: Path, env: Mapping[str, str], stdin: bytes = b"", most_bytes: int
) -> Ended:
    """Run it to its end. Over `most_bytes` of stdout and stderr together it is killed, with all that it has started; so
    it is when this is cancelled. Raises ToolFailed when it cannot be started."""
    async with process_group(command, folder=folder, env=env) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        said: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        flooded = trio.Event()

        async def read(stream: trio.abc.ReceiveStream, name: str) -> None:
            async for chunk in stream:
                room = most_bytes - sum(map(len, said.values()))
                said[name] += chunk[:room]
                if len(chunk) > room:
                    flooded.set()
                    signal_group(process, signal.SIGKILL)
                    return

        async with Background() as nursery:
            nursery.start_soon(_write, process.stdin, stdin)
            async with trio.open_nursery() as readers:
                readers.start_soon(read, process.stdout, "stdout")
                readers.start_soon(read, process.stderr, "stderr")
                await process.wait()
                readers.cancel_scope.deadline = trio.current_time() + DRAIN_S
        assert process.returncode is not None
        return Ended(process.returncode, bytes(said["stdout"]), bytes(said["stderr"]), flooded.is_set())


async def _write(pipe: trio.abc.SendStream, data: bytes) -> None:
    """A process need not read what it is given."""
    async with pipe:
        with suppress(trio.BrokenResourceError):
            await pipe.send_all(data)
