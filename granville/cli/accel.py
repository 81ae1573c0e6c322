"""`granville driver install granville-llama --accel NAME`: llama.cpp built for this machine, with its progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from granville.cli import exits
from granville.config import DEFAULT_DRIVER

if TYPE_CHECKING:
    from granville.hosting.accel import Show

LINES = 10
"""How often, where there is no terminal, a build says how far it is."""


def install_accelerated(driver: str, accel: str | None, *, dry_run: bool = False) -> int:
    """Build llama.cpp with a backend into the environment that this runs in: what `driver install` does when it is
    given `--accel` or `--dry-run`. Raises StartupError with what is missing or what failed; then the build that is here
    stays."""
    from granville.errors import StartupError
    from granville.hosting.accel import ACCELS, Builder

    if driver != DEFAULT_DRIVER or accel is None:
        what = f"--accel {accel}" if accel is not None else "--dry-run"
        command = f"granville driver install {DEFAULT_DRIVER} --accel {'|'.join(ACCELS)}"
        raise StartupError(f"{what} is for builds of llama.cpp: `{command}`")

    builder = Builder()
    if dry_run:
        for line in builder.plan(accel, Path("BUILD_FOLDER")).lines():
            print(line)
        return exits.OK
    began = time.monotonic()
    with _progress() as show:
        built = builder.install(accel, show, model=trial_model())
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"built in {minutes} min {seconds:02} s; llama.cpp here computes on {', '.join(built.backends)}")
    for gpu in built.gpus:
        print(f"  {gpu['name']}: {gpu['description']}, {gpu['total_bytes'] / 1e9:.1f} GB")
    if accel != "cpu" and not built.gpus:
        print(f"granville: the build has {accel} and finds no GPU; `granville doctor` tells more", file=sys.stderr)
    return exits.OK


def trial_model() -> Path | None:
    """The smallest model on this disk that chats: what a new build is tried with."""
    from granville.models.store import ModelStore

    chats = [file for file in ModelStore().files() if file.path and file.header and file.header.has_chat_template]
    return min(chats, key=lambda file: file.size_bytes).path if chats else None


@contextmanager
def _progress() -> Iterator[Show]:
    """A bar with the elapsed time on a terminal; elsewhere a line a stage, and a line a tenth of the compiling."""
    if not sys.stderr.isatty():
        said: set[object] = set()

        def say(what: str, share: float | None) -> None:
            part = what if share is None else int(share * LINES)
            if part not in said:
                said.add(part)
                print(f"[{what}]", file=sys.stderr, flush=True)

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def show(what: str, share: float | None) -> None:
            progress.update(task, description=what, total=None if share is None else 1.0, completed=share or 0)

        yield show
