"""What a user typed for a model, told apart by its shape alone; nothing is looked up here.

| typed | means |
| --- | --- |
| `scheme://…` | a source to fetch from |
| with a `/`, or beginning with `~` or `.` | that file, and no other |
| anything else | a name: of the catalogue, of a file in this folder, or of one in the store, in this order |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from granville.errors import StartupError
from granville.fetch.sources import OneSource, parse_source
from granville.fetch.verify import check_digest


@dataclass(frozen=True, slots=True)
class FileRef:
    path: Path
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class NameRef:
    name: str
    sha256: str | None = None


ModelRef = FileRef | NameRef | OneSource


def parse_ref(text: str, sha256: str | None = None, *, unverified: bool = False) -> ModelRef:
    """A model's reference. `sha256` is the hash that the user gave beside it; `unverified` allows for a URL without.

    Raises StartupError for an empty one, a source that cannot be used, or a hash that is none.
    """
    if not text.strip():
        raise StartupError("a model is required: a path, a name such as smollm2, hf://…, pypi://… or https://…")
    if "\0" in text:
        raise StartupError(f"{text!r} cannot name a model: there is a NUL in it")
    if "://" in text:
        return parse_source(text, sha256, unverified=unverified)
    digest = None if sha256 is None else check_digest(sha256)
    if "/" in text or text.startswith(("~", ".")):
        return FileRef(_expand(text), digest)
    return NameRef(text, digest)


def _expand(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # `~somebody` who is not a user here
        raise StartupError(f"{text}: {error}") from error
