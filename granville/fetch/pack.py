"""A folder as a release archive: one folder at its top, and the same bytes whenever and wherever it is made."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

from granville.errors import StartupError
from granville.fetch.members import safe_parts, shown

LEFT_OUT = frozenset({"__pycache__"})
"""Beside names that begin with a dot."""
MAX_FILES = 10_000


def pack(folder: Path, archive: Path, top: str) -> None:
    """Write what is in `folder` to `archive`, a new tar.gz, below a folder named `top`; on the disk when this returns.

    Hidden files and __pycache__ stay behind. Raises StartupError for links, devices, names that could not be unpacked
    on every system, and a folder with nothing in it.
    """
    files = list(_files(folder))
    if not files:
        raise StartupError(f"{folder}: there is nothing to pack")
    if len(files) > MAX_FILES:
        raise StartupError(f"{folder}: more than {MAX_FILES} files; is this the driver's own folder?")
    with archive.open("xb") as out:
        # No name and no time in the gzip header, no owner and no time in the tar's, and a fixed order.
        with (
            gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=out, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path in files:
                name = f"{top}/{path.relative_to(folder).as_posix()}"
                _require_name(folder, name)
                info = tarfile.TarInfo(name)
                with path.open("rb") as file:
                    found = os.fstat(file.fileno())
                    info.size = found.st_size
                    info.mode = 0o755 if found.st_mode & stat.S_IXUSR else 0o644
                    tar.addfile(info, file)
        out.flush()
        os.fsync(out.fileno())


def _files(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise StartupError(f"{folder}: cannot be read: {error.strerror}") from None
    for entry in entries:
        if entry.name in LEFT_OUT or entry.name.startswith("."):
            continue
        if entry.is_symlink():
            raise StartupError(f"{entry.path}: a link; put the file itself there")
        if entry.is_dir():
            yield from _files(Path(entry.path))
        elif entry.is_file():
            yield Path(entry.path)
        else:
            raise StartupError(f"{entry.path}: neither a file nor a folder")


def _require_name(folder: Path, name: str) -> None:
    try:
        safe_parts(name)
    except ValueError as error:
        raise StartupError(f"{folder}: {shown(name)} {error}") from None
