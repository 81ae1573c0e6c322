"""Models of several files: a folder, whose hash is that of the list of its files' hashes.

sha256sum's line of each file, sorted by name:   HEX, two spaces, the path below the folder, a newline
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from granville.errors import StartupError

MAX_FILES = 10_000
"""Of one model."""


def files_of(folder: Path) -> dict[str, Path]:
    """The files below a folder by their paths in it, in order; folders and links are passed over. Raises StartupError
    for more than a model has."""
    found: dict[str, Path] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                found[path.relative_to(folder).as_posix()] = path
        if len(found) > MAX_FILES:
            raise StartupError(f"{folder}: more than {MAX_FILES} files, too many for a model")
    return dict(sorted(found.items()))


def tree_digest(files: Mapping[str, str]) -> str:
    """The SHA-256 of a folder, by the hex digests of its files."""
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def tree_bytes(path: Path) -> int:
    """The size of a file, or of all files in a folder. Raises OSError when it is not there."""
    status = path.stat()
    return sum(file.stat().st_size for file in files_of(path).values()) if path.is_dir() else status.st_size


def stamp(path: Path) -> tuple[int, int, int]:
    """(size, modification time in ns, inode) of a file; of a folder its files' size, the newest of their times, and its
    own inode. Raises OSError when it is not there."""
    status = path.stat()
    if not path.is_dir():
        return status.st_size, status.st_mtime_ns, status.st_ino
    files = [file.stat() for file in files_of(path).values()]
    return sum(one.st_size for one in files), max((one.st_mtime_ns for one in files), default=0), status.st_ino
