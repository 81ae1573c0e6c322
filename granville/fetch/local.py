"""Bytes that are on this machine already, copied to where they belong: `file://`, and blocks out of an archive."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Protocol

import trio

from granville.errors import StartupError
from granville.fetch.place import part_of, put_in_place, require_margin, require_space
from granville.fetch.progress import Progress, silent

COPY_BYTES = 1 << 20
PROGRESS_BYTES = 8 << 20


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def copy_blocks(source: Readable, target: Path, total: int, label: str, progress: Progress) -> None:
    """Write what `source` gives to `target`. For a thread: it notices cancellation. Raises DiskFull before the disk is
    full."""
    with target.open("wb") as file:
        write_blocks(source, file, target.parent, total, label, progress)


def write_blocks(source: Readable, file: IO[bytes], folder: Path, total: int, label: str, progress: Progress) -> int:
    """The same for an open file, which lies in `folder`; how many bytes there were."""
    done = shown = 0
    while block := source.read(COPY_BYTES):
        file.write(block)
        done += len(block)
        trio.from_thread.check_cancelled()
        if done - shown >= PROGRESS_BYTES or done == total:
            trio.from_thread.run_sync(progress, label, done, total)
            require_margin(folder)
            shown = done
    return done


async def copy_file(
    origin: Path,
    destination: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    source: str | None = None,
    progress: Progress = silent,
) -> None:
    """Make `destination` a verified copy of a file of this machine. The caller holds `sole_writer(destination)`.
    Raises StartupError."""
    part = part_of(destination)
    try:
        await trio.to_thread.run_sync(_copy, origin, part, size, progress)
        await put_in_place(part, destination, sha256, source=source, progress=progress)
    finally:
        part.unlink(missing_ok=True)


def _copy(origin: Path, part: Path, size: int | None, progress: Progress) -> None:
    try:
        opened = origin.open("rb")
    except OSError as error:
        raise StartupError(f"{origin}: cannot be read: {error.strerror}") from error
    with opened:
        actual = origin.stat().st_size
        if not origin.is_file():
            raise StartupError(f"{origin}: not a file")
        if size is not None and actual != size:
            raise StartupError(f"{origin}: has {actual} bytes, {size} were expected")
        require_space(part.parent, actual)
        copy_blocks(opened, part, actual, f"copying {origin.name}", progress)
