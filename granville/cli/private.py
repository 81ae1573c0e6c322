"""A daemon of a command's own: `granville serve` as a child, for as long as the command needs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from granville.client.background import Background
from granville.errors import StartupError

START_S = 300.0
"""To fetch the model, load it and say that it is ready."""


@asynccontextmanager
async def private_daemon(arguments: list[str], say: Callable[[str], None]) -> AsyncIterator[trio.Process]:
    """`granville serve ARGUMENTS`, ready; `say` gets each line that it prints. It does not outlive the body, however
    that ends. Raises StartupError when it does not become ready."""
    command = [sys.executable, "-m", "granville", "serve", *arguments]
    async with Background() as nursery:
        process: trio.Process = await nursery.start(
            partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
        )
        with trio.move_on_after(START_S) as starting:
            await nursery.start(_echo, process, say)
        if starting.cancelled_caught:
            raise StartupError(f"the daemon was not ready within {START_S:.0f} s")
        yield process


async def _echo(
    process: trio.Process, say: Callable[[str], None], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """What the daemon says on stdout; the first line is that it is ready.

    Started by: `private_daemon`. Ends when: the daemon closes its stdout. Cancelled by: the end of its body.
    """
    ready, part = False, ""
    assert process.stdout is not None
    async for data in process.stdout:
        *lines, part = (part + data.decode(errors="replace")).split("\n")
        for line in lines:
            say(line)
        if lines and not ready:
            task_status.started()
            ready = True
    if not ready:
        raise StartupError("the daemon ended before it was ready")
