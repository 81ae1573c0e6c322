"""Which registries are asked, in which order: `[[registry]]` in `~/.granville/config.toml`, or `--registry`."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from granville.config import home
from granville.errors import StartupError
from granville.registry.signing import parse_public_key

CONFIG = "config.toml"
INDEX = "registry.json"
EMBEDDED = "embedded"
MAX_REGISTRIES = 32
MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Registry:
    """One place with an index. `official`: it may have drivers named `granville-<backend>`."""

    name: str
    location: str | Path | None
    """An https URL (or http, of this machine), a file, or None for the index that Granville came with."""
    key: bytes | None = None
    """Whoever signs it; an index of another is not used."""
    official: bool = False

    @property
    def shown(self) -> str:
        """For people, without a password that may be in its URL."""
        place = "" if self.location is None else without_secrets(str(self.location))
        return f"{self.name} ({place})" if place not in ("", self.name) else self.name


THE_EMBEDDED = Registry(EMBEDDED, None, official=True)


class _Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    url: str
    key: str | None = None
    official: bool = False


class _File(msgspec.Struct, frozen=True):
    registry: list[_Table] = []


def configured(folder: Path | None = None) -> list[Registry]:
    """The registries of the configuration, in their order. Raises StartupError that names the file."""
    path = (home() if folder is None else folder) / CONFIG
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        if len(data) > MAX_CONFIG_BYTES:
            raise StartupError(f"more than {MAX_CONFIG_BYTES} bytes")
        tables = msgspec.convert(tomllib.loads(data.decode()), _File).registry
        found = [_registry(table, path.parent) for table in tables]
        names = [registry.name for registry in found]
        twice = {name for name in names if names.count(name) > 1 or name == EMBEDDED}
        if twice:
            raise StartupError(f"the name {min(twice)!r} is taken; every registry has its own")
        if len(found) > MAX_REGISTRIES:
            raise StartupError(f"{len(found)} registries, at most {MAX_REGISTRIES} are asked")
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError, StartupError) as error:
        raise StartupError(f"{path}: {error}") from None
    return found


def registries(flags: Sequence[str] = (), folder: Path | None = None) -> list[Registry]:
    """The embedded index, then what `--registry` names, or without that the configuration's.

    A flag is a name or the URL of the configuration, which brings its key and its marks, or another place.
    """
    known = configured(folder)
    if not flags:
        return [THE_EMBEDDED, *known]
    chosen = []
    for flag in flags:
        if flag in (registry.name for registry in known):
            chosen.append(next(registry for registry in known if registry.name == flag))
            continue
        if flag.isidentifier() and not Path(flag).exists():
            names = ", ".join(registry.name for registry in known) or "none"
            raise StartupError(f"--registry {flag}: no such registry is configured (there: {names}), nor is it a path")
        location = parse_location(flag, Path.cwd())
        same = [registry for registry in known if registry.location == location]
        chosen.append(same[0] if same else Registry(without_secrets(str(location)), location))
    return [THE_EMBEDDED, *dict.fromkeys(chosen)]


def parse_location(text: str, relative_to: Path) -> str | Path:
    """A URL or a file. What ends in a slash or is a folder has its index in it. Raises StartupError."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        path = Path(os.path.normpath(relative_to / Path(text).expanduser()))
        return path / INDEX if path.is_dir() else path
    if scheme.lower() == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise StartupError(f"{text}: expected the whole path of a file here, as in file:///srv/{INDEX}")
        return parse_location(unquote(parts.path), relative_to)
    require_safe_url(text)
    return text + INDEX if text.endswith("/") else text


def require_safe_url(url: str) -> None:
    """Raises StartupError for anything but https, and http of this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise StartupError(f"{url[:200]!r}: not a URL: {error}") from None
    if not host or parts.scheme not in ("https", "http"):
        raise StartupError(f"{without_secrets(url)}: expected https://, file:// or a path")
    if parts.scheme == "http" and not is_loopback(host):
        raise StartupError(f"{without_secrets(url)}: http:// is taken of this machine alone; use https://")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def without_secrets(url: str) -> str:
    """A URL without user, password, query and fragment; a path as it is."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _registry(table: _Table, folder: Path) -> Registry:
    if not table.name or not table.name.isprintable():
        raise StartupError(f"registry: {table.name!r} is no name")
    try:
        key = None if table.key is None else parse_public_key(table.key)
        return Registry(table.name, parse_location(table.url, folder), key, table.official)
    except StartupError as error:
        raise StartupError(f"registry {table.name!r}: {error}") from None
