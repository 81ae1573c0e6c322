"""Putting a whole file where it belongs: one writer at a time, verified first, and then in one step.

While it is fetched a file is `NAME.part` in its own folder, so that the last step is a rename in one file
system. A fetch that dies leaves no more than the part, which the next one goes on with.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from granville.errors import StartupError
from granville.fetch.progress import Progress, silent
from granville.fetch.trees import files_of
from granville.fetch.verify import HashMismatch, check_gguf, git_blob_sha1, remember, require_digest, sha256_file

LOCK_RETRY_S = 0.1
FREE_MARGIN_BYTES = 64 << 20
"""No fetch takes the last of a disk: other programs write there too."""
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
ADVICE = "make room, or set GRANVILLE_HOME to a folder on another disk"


class DiskFull(StartupError):
    """No room for what is fetched; another source would not help."""


def part_of(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.part")


def lock_of(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.lock")


@asynccontextmanager
async def sole_writer(destination: Path, progress: Progress = silent) -> AsyncIterator[None]:
    """Holds the lock file beside the destination; another process or task that fetches the same file waits, and
    `progress` says so.

    The lock is tried again and again rather than waited for in a thread: a thread that is blocked in flock(2)
    cannot be cancelled and would take the lock after its task is gone. The lock file is removed while it is
    held, so whoever gets a lock must look whether the name still means the file that was locked.
    """
    path = lock_of(destination)
    while (lock := _make_and_lock(path)) is None:
        progress(f"waiting for another download of {destination.name}", size_of(part_of(destination)), None)
        await trio.sleep(LOCK_RETRY_S)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


@contextmanager
def at_once(destination: Path) -> Iterator[bool]:
    """As `sole_writer`, without waiting: yields False when another has the lock."""
    path = lock_of(destination)
    lock = _try_lock(path) if destination.parent.is_dir() else None
    try:
        yield lock is not None
    finally:
        if lock is not None:
            path.unlink(missing_ok=True)
            os.close(lock)


def is_being_written(destination: Path) -> bool:
    """Whether some process holds the lock of this file now. The file of a process that was killed is free."""
    try:
        lock = os.open(lock_of(destination), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _make_and_lock(path: Path) -> int | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _try_lock(path)
    except FileNotFoundError:  # another removed the folder just now, empty after it failed
        return None


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


def remove_if_empty(folder: Path) -> bool:
    """Remove a folder that has nothing in it; whether it had."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def size_of(path: Path) -> int:
    """0 for a file that is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def require_space(folder: Path, size: int) -> None:
    """Raises DiskFull when the file system of `folder` has no room for `size` more bytes."""
    free = shutil.disk_usage(folder).free
    if size + FREE_MARGIN_BYTES > free:
        raise DiskFull(f"{folder}: {size / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free; {ADVICE}")


def require_margin(folder: Path) -> None:
    """While something is written there: raises DiskFull before the disk is full, whoever fills it."""
    free = shutil.disk_usage(folder).free
    if free < FREE_MARGIN_BYTES:
        raise DiskFull(
            f"{folder}: only {free / 1e6:.0f} MB are free by now, and {FREE_MARGIN_BYTES / 1e6:.0f} MB are left "
            f"to others; {ADVICE}, and give the same command again"
        )


def why_not_written(destination: Path, error: OSError) -> StartupError:
    """An error of the file system as a sentence."""
    if error.errno in DISK_IS_FULL:
        return DiskFull(f"{destination.parent}: {error.strerror}; {ADVICE}, and give the same command again")
    return StartupError(f"{destination}: cannot be written: {error.strerror or error}")


async def put_in_place(
    part: Path,
    destination: Path,
    sha256: str | None,
    *,
    git_blob: str | None = None,
    source: str | None = None,
    progress: Progress = silent,
) -> None:
    """Checks a whole part and renames it to the destination; both the file and its name are on the disk then.

    Without a hash to check, it is computed, so that it is known from now on. Raises HashMismatch, or StartupError for
    a `.gguf` that is none; the part is left to the caller.
    """
    if destination.suffix == ".gguf":
        check_gguf(part)
    if git_blob is not None and (actual := await git_blob_sha1(part)) != git_blob:
        raise HashMismatch(f"{destination.name}: expected the git blob {git_blob}, got {actual}")
    if sha256 is None:
        sha256 = await sha256_file(part, progress)
    else:
        await require_digest(part, sha256, progress)
    await trio.to_thread.run_sync(sync, part)
    # Before the rename: a crash in between leaves a note about no file, which is as good as none.
    remember(destination, sha256, source, measured=part)
    os.replace(part, destination)
    await trio.to_thread.run_sync(sync, destination.parent)


async def put_folder_in_place(
    folder: Path, destination: Path, sha256: str | None, *, source: str | None = None, progress: Progress = silent
) -> None:
    """The same for a whole folder, which lies in another one on the same disk that is the caller's alone: what was at
    the destination goes there. Raises HashMismatch."""
    if sha256 is None:
        sha256 = await sha256_file(folder, progress)
    else:
        await require_digest(folder, sha256, progress)
    await trio.to_thread.run_sync(_sync_all, folder)
    remember(destination, sha256, source, measured=folder)
    await trio.to_thread.run_sync(_swap, folder, destination)
    await trio.to_thread.run_sync(sync, destination.parent)


def _sync_all(folder: Path) -> None:
    files = files_of(folder)
    for path in (*files.values(), *{file.parent for file in files.values()}):
        sync(path)


def _swap(folder: Path, destination: Path) -> None:
    if os.path.lexists(destination):
        os.rename(destination, folder.with_name(f"{folder.name}.before"))
    os.rename(folder, destination)


def sync(path: Path) -> None:
    """A file's bytes, or a folder's names, are on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """The file has these bytes, or what it had before, whenever this is cut short; on the disk when it returns."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync(path.parent)
