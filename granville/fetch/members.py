"""The names in an archive, as paths below one folder: what may be written where."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from granville.errors import StartupError

MAX_PATH_BYTES = 1024
MAX_PART_BYTES = 255
MAX_DEPTH = 32
SHOWN_CHARACTERS = 80


def shown(name: str) -> str:
    """A name for people: quoted, control characters escaped, and no longer than a line."""
    return ascii(name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}…")


def safe_parts(name: str) -> tuple[str, ...]:
    """The parts of a relative path that means the same on every system; none for the archive's own root (`./`).

    Raises ValueError with what is wrong with it.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError("is not valid UTF-8") from None
    if size > MAX_PATH_BYTES:
        raise ValueError(f"is {size} bytes long, at most {MAX_PATH_BYTES} are taken")
    if any(unicodedata.category(character).startswith(("Cc", "Cf", "Zl", "Zp")) for character in name):
        raise ValueError("has control characters in it")
    if "\\" in name or ":" in name:
        raise ValueError("has a backslash or a colon in it")
    if name.startswith("/"):
        raise ValueError("is an absolute path")
    name = name.removeprefix("./").removesuffix("/")
    if name in ("", "."):
        return ()
    parts = tuple(name.split("/"))
    if len(parts) > MAX_DEPTH:
        raise ValueError(f"has {len(parts)} folders, at most {MAX_DEPTH} are taken")
    for part in parts:
        if part == "..":
            raise ValueError("leads out of its folder")
        if part in ("", "."):
            raise ValueError("has an empty part")
        if len(part.encode()) > MAX_PART_BYTES:
            raise ValueError(f"has a part of more than {MAX_PART_BYTES} bytes")
    return parts


class Tree:
    """The folders and files that an archive has below `folder`: one folder at the top, and no name twice.

    Names that differ only in case or in how an accent is written are one name: on some disks they are.
    """

    def __init__(self, folder: Path, archive: str) -> None:
        self.folder = folder
        self.archive = archive
        self._files: set[tuple[str, ...]] = set()
        self._listed: set[tuple[str, ...]] = set()
        self._folders: dict[tuple[str, ...], tuple[str, ...]] = {}
        """Every folder, listed or only implied by what lies in it, as it was spelt first."""

    def add_folder(self, name: str) -> None:
        """Make a folder, and what it lies in. Raises StartupError."""
        parts = self._parts(name)
        if not parts:
            return
        if _key(parts) in self._listed:
            raise self._refused(name, "is there twice")
        self._listed.add(_key(parts))
        self._make(parts, name)

    def add_file(self, name: str) -> Path:
        """Where a file goes, its folder made; raises StartupError when it may go nowhere."""
        parts = self._parts(name)
        if len(parts) < 2:
            raise self._refused(name, "lies in no folder; an archive has one folder at its top")
        self._make(parts[:-1], name)
        if _key(parts) in self._files or _key(parts) in self._folders:
            raise self._refused(name, "is there twice")
        self._files.add(_key(parts))
        return self.folder.joinpath(*parts)

    def top(self) -> Path:
        """The one folder. Raises StartupError for an archive without one."""
        for parts in self._folders.values():
            return self.folder / parts[0]
        raise StartupError(f"{self.archive}: has nothing in it")

    def _parts(self, name: str) -> tuple[str, ...]:
        try:
            parts = safe_parts(name)
        except ValueError as error:
            raise self._refused(name, str(error)) from None
        for first, *_ in self._folders.values():
            if parts and parts[0] != first:
                raise self._refused(name, f"lies beside {shown(first)}; only one folder may be at the top")
            break
        return parts

    def _make(self, parts: tuple[str, ...], name: str) -> None:
        for depth in range(1, len(parts) + 1):
            part = parts[:depth]
            if _key(part) in self._files:
                raise self._refused(name, "needs a folder where there is a file")
            known = self._folders.setdefault(_key(part), part)
            if known != part:
                raise self._refused(name, f"spells {shown('/'.join(known))} in another way")
            self.folder.joinpath(*part).mkdir(mode=0o755, exist_ok=True)

    def _refused(self, name: str, why: str) -> StartupError:
        return StartupError(f"{self.archive}: {shown(name)} {why}")


def _key(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(unicodedata.normalize("NFC", part).casefold() for part in parts)
