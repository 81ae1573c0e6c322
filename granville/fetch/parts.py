"""Downloads that were begun and not ended: what is kept of them, and how they are found and removed.

Beside `NAME.part` lies `.NAME.part.json`: where its bytes come from and which version of the file they belong to, so
that the next attempt can ask for the rest of that version (RFC 9110, section 13.1.5, If-Range).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import msgspec

from granville.fetch.place import at_once, is_being_written, part_of, size_of

WHEEL_SUFFIX = ".wheel"
"""Of the hidden folder in which pip works (`fetch.pypi`)."""


class PartState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of the file that a part is the beginning of."""

    url: str = ""
    """Without what may be secret in it."""
    source: str = ""
    """As a person would type it."""
    sha256: str | None = None
    """What the whole must have; None: not known."""
    total: int | None = None
    etag: str | None = None
    """A strong one."""
    last_modified: str | None = None

    @property
    def validator(self) -> str | None:
        """What If-Range can be sent with."""
        return self.etag or self.last_modified


def strong_etag(value: str | None) -> str | None:
    """An ETag that vouches for every byte; None for a weak one."""
    return value if value and value.startswith('"') else None


def strong_date(last_modified: str | None, date: str | None) -> str | None:
    """A Last-Modified at least a second before the server's Date: only then it tells two versions apart (RFC 9110,
    section 8.8.2.2)."""
    if last_modified is None or date is None:
        return None
    try:
        age = parsedate_to_datetime(date) - parsedate_to_datetime(last_modified)
    except (ValueError, TypeError):  # no date, or one with a zone and one without
        return None
    return last_modified if age.total_seconds() >= 1 else None


def state_path(part: Path) -> Path:
    return part.with_name(f".{part.name}.json")


def read_state(part: Path) -> PartState | None:
    try:
        return msgspec.json.decode(state_path(part).read_bytes(), type=PartState)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def write_state(part: Path, state: PartState) -> None:
    path = state_path(part)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(state))
    os.replace(temporary, path)


def drop(part: Path) -> None:
    """Remove a part and what is known of it."""
    part.unlink(missing_ok=True)
    state_path(part).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A download that is under way, or that ended before it was whole."""

    destination: Path
    size_bytes: int
    """Of what is here."""
    total_bytes: int | None
    source: str | None
    under_way: bool
    """Some process is fetching it now."""

    @property
    def name(self) -> str:
        return self.destination.name


def unfinished(folder: Path) -> list[Unfinished]:
    """All below the folder, by name; locks that a killed process left are among them."""
    found = []
    for destination in sorted(_destinations(folder)):
        part = part_of(destination)
        state = read_state(part) or PartState()
        staging = wheel_folder(destination)
        under_way = is_being_written(destination)
        if under_way and not (part.exists() or staging.exists()):
            continue  # a download that has nothing yet, or a lock for another purpose
        size = size_of(part) + sum(map(size_of, _files(staging)))
        found.append(Unfinished(destination, size, state.total, state.source or None, under_way))
    return found


def remove_unfinished(one: Unfinished) -> bool:
    """Remove what is here of it; False when it is under way."""
    with at_once(one.destination) as ours:
        if ours:
            drop(part_of(one.destination))
            shutil.rmtree(wheel_folder(one.destination), ignore_errors=True)
    return ours


def _destinations(folder: Path) -> set[Path]:
    found = set()
    for parent, folders, names in os.walk(folder):
        for name in names:
            if name.endswith(".part") and not name.startswith("."):
                found.add(Path(parent, name.removesuffix(".part")))
            elif name.startswith(".") and name.endswith(".lock"):
                found.add(Path(parent, name[1:].removesuffix(".lock")))
        for name in [name for name in folders if name.startswith(".") and name.endswith(WHEEL_SUFFIX)]:
            found.add(Path(parent, name[1:].removesuffix(WHEEL_SUFFIX)))
            folders.remove(name)
    return found


def wheel_folder(destination: Path) -> Path:
    """Where pip works on it; it cannot go on with what is left there."""
    return destination.with_name(f".{destination.name}{WHEEL_SUFFIX}")


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)
