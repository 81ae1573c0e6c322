"""`file://`: a file of this machine, copied to where it belongs."""

from __future__ import annotations

from pathlib import Path

import trio

from granville.errors import StartupError
from granville.fetch.place import part_of, put_in_place, require_margin, require_space
from granville.fetch.progress import Progress, silent

COPY_BYTES = 1 << 20
CHECK_BYTES = 8 << 20


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
        done = checked = 0
        with part.open("wb") as file:
            while block := opened.read(COPY_BYTES):
                file.write(block)
                done += len(block)
                trio.from_thread.check_cancelled()
                if done - checked >= CHECK_BYTES or done == actual:
                    trio.from_thread.run_sync(progress, f"copying {origin.name}", done, actual)
                    require_margin(part.parent)
                    checked = done
