"""Files that a command writes for a person."""

from __future__ import annotations

import os
from pathlib import Path

from granville.fetch.place import replace_file


def write_whole(path: Path, data: bytes) -> None:
    """In one step: a file that is there is the old one or the new one, whoever watches it; a pipe or a device is
    written to. Raises OSError."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)
    else:
        replace_file(path, data, 0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
