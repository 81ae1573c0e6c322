"""Names from elsewhere that become names of files here."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from granville.errors import StartupError

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")


def file_name(path: str, text: str) -> str:
    """The last part of a path, when it can be a file's name here. Raises StartupError that shows `text`."""
    name = PurePosixPath(path).name
    check_file_name(name, text)
    return name


def check_file_name(name: str, text: str) -> None:
    """Raises StartupError for a name that is hidden, empty, too long, or has slashes or odd characters in it."""
    if _SAFE_NAME.fullmatch(name) is None or name.endswith(".part"):
        raise StartupError(f"{text}: {name!r} cannot be a model's file name; letters, digits and . _ + - can be in one")
