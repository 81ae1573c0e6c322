"""One member out of an archive, streamed and bounded; nothing else of it is ever written."""

from __future__ import annotations

import difflib
import zipfile
import zlib
from pathlib import Path

import trio

from granville.errors import StartupError
from granville.fetch.place import require_space
from granville.fetch.progress import Progress

COPY_BYTES = 1 << 20
PROGRESS_BYTES = 8 << 20
ENCRYPTED = 1
"""The bit of a member's flags (APPNOTE.TXT, section 4.4.4)."""


def copy_member(archive: Path, member: str, target: Path, max_bytes: int, progress: Progress) -> None:
    """Copy `member` of a zip archive (a wheel is one) to `target`. For a thread: it notices cancellation.

    zipfile checks the member's CRC and never yields more than the size in its header. Raises StartupError
    for a damaged archive, a member that is not in it, or one over `max_bytes`.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            info = _find(opened, member)
            if info.flag_bits & ENCRYPTED:
                raise StartupError(f"{member} is encrypted in {archive.name}")
            if info.file_size > max_bytes:
                raise StartupError(f"{member} has {info.file_size} bytes, {max_bytes} are the most expected")
            require_space(target.parent, info.file_size)
            _copy(opened, info, target, progress)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        # NotImplementedError: a compression method that zipfile does not know.
        raise StartupError(f"{archive.name}: cannot be unpacked: {error}") from error


def _find(archive: zipfile.ZipFile, member: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(member)
    except KeyError:
        near = difflib.get_close_matches(member, archive.namelist(), n=3, cutoff=0.4)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise StartupError(f"{Path(archive.filename or '').name} has no file {member!r}{hint}") from None


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, progress: Progress) -> None:
    done = shown = 0
    with archive.open(info) as source, target.open("wb") as file:
        while block := source.read(COPY_BYTES):
            file.write(block)
            done += len(block)
            trio.from_thread.check_cancelled()
            if done - shown >= PROGRESS_BYTES or done == info.file_size:
                trio.from_thread.run_sync(progress, f"unpacking {target.stem}", done, info.file_size)
                shown = done
