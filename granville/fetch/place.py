"""Putting a whole file where it belongs: one writer at a time, verified first, and then in one step.

While it is fetched a file is `NAME.part` in its own folder, so that the last step is a rename in one file
system. A fetch that dies leaves no more than the part, which the next one goes on with.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from granville.errors import StartupError
from granville.fetch.verify import check_gguf, remember, require_digest

LOCK_RETRY_S = 0.1
FREE_MARGIN_BYTES = 64 << 20


def part_of(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.part")


@asynccontextmanager
async def sole_writer(destination: Path) -> AsyncIterator[None]:
    """Holds the lock file beside the destination; another process or task that fetches the same file waits.

    The lock is tried again and again rather than waited for in a thread: a thread that is blocked in flock(2)
    cannot be cancelled and would take the lock after its task is gone. The lock file is removed while it is
    held, so whoever gets a lock must look whether the name still means the file that was locked.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    path = destination.with_name(f".{destination.name}.lock")
    while True:
        lock = _try_lock(path)
        if lock is not None:
            break
        await trio.sleep(LOCK_RETRY_S)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _try_lock(path: Path) -> int | None:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(lock), path.stat())
    except (BlockingIOError, FileNotFoundError):
        ours = False
    if ours:
        return lock
    os.close(lock)
    return None


def require_space(folder: Path, size: int) -> None:
    """Raises StartupError when the file system of `folder` has no room for `size` more bytes."""
    free = shutil.disk_usage(folder).free
    if size + FREE_MARGIN_BYTES > free:
        raise StartupError(
            f"{folder}: {size / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free; make room, "
            "or set GRANVILLE_HOME to a folder on another disk"
        )


async def put_in_place(part: Path, destination: Path, sha256: str | None) -> None:
    """Checks a whole part and renames it to the destination; both the file and its name are on the disk then.

    Raises HashMismatch, or StartupError for a `.gguf` that is none; the part is left to the caller.
    """
    if destination.suffix == ".gguf":
        check_gguf(part)
    if sha256 is not None:
        await require_digest(part, sha256)
    await trio.to_thread.run_sync(_sync, part)
    os.replace(part, destination)
    if sha256 is not None:
        remember(destination, sha256)
    await trio.to_thread.run_sync(_sync, destination.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
