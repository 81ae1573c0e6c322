"""A driver's tuning commands, each in a child process: what crashes there costs the command and nothing else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import trio

from granville.errors import StartupError

SILENCE_S = 300.0
"""A command that has said nothing for so long is given up: its next line would have been a small part of its work."""
MAX_LINE_BYTES = 16 << 20
ERROR_BYTES = 2000

Progress = Callable[[float], None]
"""Called with the share of the work that is done, 0 to 1."""


class TuningFailed(StartupError):
    """A command failed, crashed or hung; the message says which, for a person."""


class Line(msgspec.Struct, frozen=True):
    """One line of a command's output."""

    done: int | None = None
    of: int | None = None
    result: dict[str, Any] | None = None
    error: str | None = None


async def run_command(module: str, command: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Run one command of a driver's tuning module and return its result. Raises TuningFailed. Cancelled, it leaves no
    process behind."""
    lines: list[Line] = []
    failure: TuningFailed | None = None
    argv = [sys.executable, "-m", module, json.dumps(command)]
    # One nursery, to read beside the process; it ends when the process has.
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, argv, stdout=subprocess.PIPE, capture_stderr=True, check=False, stdin=b"")
        done: list[subprocess.CompletedProcess[bytes]] = []
        process: trio.Process = await nursery.start(_finish, start, done)
        assert process.stdout is not None
        part = b""
        while failure is None:
            with trio.move_on_after(SILENCE_S) as waiting:
                data = await process.stdout.receive_some()
            if waiting.cancelled_caught:
                failure = TuningFailed(f"{command['op']}: nothing came for {SILENCE_S:g} s")
                break
            if not data:
                break
            *whole, part = (part + data).split(b"\n")
            try:
                lines += [_parse(text) for text in whole]
            except msgspec.DecodeError as error:
                failure = TuningFailed(f"{command['op']}: what came is no line of the protocol: {error}")
            if len(part) > MAX_LINE_BYTES:
                failure = TuningFailed(f"{command['op']}: a line of more than {MAX_LINE_BYTES} bytes came")
            if lines and lines[-1].of:
                progress((lines[-1].done or 0) / lines[-1].of)
        if failure is not None:
            process.kill()
    if failure is not None:
        raise failure
    return _outcome(str(command["op"]), lines, done[0])


async def _finish(
    start: Callable[..., Any],
    done: list[subprocess.CompletedProcess[bytes]],
    task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Started by: `run_command`. Ends when: the process does. Cancelled by: whoever cancels `run_command`."""
    done.append(await start(task_status=task_status))


_parse = msgspec.json.Decoder(Line).decode


def _outcome(op: str, lines: list[Line], done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    last = lines[-1] if lines else Line()
    if last.error is not None:
        raise TuningFailed(last.error)
    if done.returncode < 0:
        number = -done.returncode
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        raise TuningFailed(f"{op}: the process ended by {name}")
    if done.returncode != 0 or last.result is None:
        said = done.stderr[-ERROR_BYTES:].decode(errors="replace").strip().splitlines()
        raise TuningFailed(f"{op}: ended with {done.returncode}{': ' + said[-1] if said else ''}")
    return last.result
