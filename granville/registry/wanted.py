"""What `granville driver install` was asked for: a name, a URL, an archive or a folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from granville.errors import StartupError
from granville.fetch.sources import one_digest
from granville.fetch.verify import check_digest
from granville.hosting.manifest import check_name, check_version
from granville.registry.settings import require_safe_url

ARCHIVE_ENDINGS = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".zip")
_NAME = re.compile(r"(?P<name>[^=\s]+?)(?:==(?P<version>[^=\s]+))?")


@dataclass(frozen=True, slots=True)
class ByName:
    name: str
    version: str | None = None


@dataclass(frozen=True, slots=True)
class ByUrl:
    url: str
    sha256: str | None
    """None: taken as it comes, because the person said so."""


@dataclass(frozen=True, slots=True)
class ByPath:
    path: Path
    sha256: str | None = None


Wanted = ByName | ByUrl | ByPath


def parse_wanted(text: str, sha256: str | None = None, *, unverified: bool = False) -> Wanted:
    """What has a slash or an archive's ending is a path, what has `://` a URL, all else a name.

    Raises StartupError for what is none of these, and for a hash that is missing, twice, or out of place.
    """
    scheme, separator, _ = text.partition("://")
    if separator and scheme.lower() != "file":
        return _by_url(text, sha256, unverified=unverified)
    if unverified:
        raise StartupError("--unverified: only for a URL; what a registry has is always verified")
    if separator:
        bare, digest = _split(text, sha256)
        return _by_path(Path(unquote(urlsplit(bare).path)), digest)
    if "/" in text or text.lower().endswith(ARCHIVE_ENDINGS) or text in (".", ".."):
        bare, digest = (text, sha256) if Path(text).exists() else _split(text, sha256)
        return _by_path(Path(bare).expanduser(), None if digest is None else check_digest(digest))
    match = _NAME.fullmatch(text)
    if match is None:
        raise StartupError(f"{text!r}: expected NAME or NAME==VERSION, a URL, a folder or an archive")
    if sha256 is not None:
        raise StartupError("--sha256: for a URL or an archive; for a name the registry has the hash")
    try:
        check_name(match["name"])
    except StartupError as error:
        if Path(text).exists():
            raise StartupError(f"{error}; for what lies here, write ./{text}") from None
        raise
    return ByName(match["name"], None if match["version"] is None else check_version(match["version"]))


def _by_url(text: str, sha256: str | None, *, unverified: bool) -> ByUrl:
    bare, digest = _split(text, sha256)
    if not bare.lower().startswith(("https://", "http://")):
        raise StartupError(f"{bare}: expected https://, file:// or a path")
    if digest is None and not unverified:
        raise StartupError(
            f"{bare}: a driver runs as you, so one from the web needs its SHA-256: add #sha256=HEX to it, or give "
            "--sha256 HEX; --unverified takes it as it comes and says the hash"
        )
    if digest is not None and unverified:
        raise StartupError("--unverified: there is a hash; leave one of the two out")
    if digest is None:
        require_safe_url(bare)
    return ByUrl(bare, digest)


def _by_path(path: Path, digest: str | None) -> ByPath:
    if not path.exists():
        raise StartupError(f"there is no {path.absolute()}")
    if not (path.is_dir() or path.is_file()):
        raise StartupError(f"{path.absolute()}: neither a file nor a folder")
    if path.is_dir() and digest is not None:
        raise StartupError("--sha256: a folder has none; it is the hash of an archive")
    return ByPath(Path(os.path.abspath(path)), digest)


def _split(text: str, beside: str | None) -> tuple[str, str | None]:
    """What is before `#sha256=HEX`, and the hash from there or from beside it."""
    bare, _, fragment = text.partition("#")
    return bare, one_digest(fragment, beside)
