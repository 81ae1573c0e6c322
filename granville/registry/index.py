"""Whose a name is, and which archive it means here.

A name belongs to the first registry, in their order, that has it, and to no other: versions of several are never put
together, so nobody can slip a newer one under a name that is somebody else's. A registry that cannot be read ends the
search, because the name may be its own. Names of official drivers (`granville-…`) count only where a registry is marked
official.
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from packaging.version import InvalidVersion
from packaging.version import Version as Ordered

from granville.errors import StartupError
from granville.hosting.manifest import ANY_PLATFORM, check_name, check_version, is_official, normal_platform
from granville.registry.remote import Loaded
from granville.registry.schema import Artifact, DriverEntry
from granville.registry.settings import Registry, require_safe_url


@dataclass(frozen=True, slots=True)
class Owned:
    """A driver as the registry has it that the name belongs to."""

    name: str
    loaded: Loaded
    entry: DriverEntry

    @property
    def registry(self) -> Registry:
        return self.loaded.registry


@dataclass(frozen=True, slots=True)
class Build:
    """One archive: what is to be fetched from where."""

    name: str
    version: str
    platform: str
    artifact: Artifact
    location: str | Path
    registry: Registry


async def find_owner(
    name: str, registries: Sequence[Registry], load: Callable[[Registry], Awaitable[Loaded]], say: Callable[[str], None]
) -> Owned:
    """Ask one registry after another; `say` gets what a person should know. Raises StartupError, with near names."""
    check_name(name)
    known: list[str] = []
    not_theirs: list[str] = []
    for registry in registries:
        try:
            loaded = await load(registry)
        except StartupError as error:
            why = type(error)(f"{error}. {name} may be a driver of registry {registry.name}, so no other is asked")
            raise why from error
        if loaded.note:
            say(loaded.note)
        entry = loaded.index.drivers.get(name)
        if entry is not None and is_official(name) and not registry.official:
            not_theirs.append(registry.shown)
        elif entry is not None:
            return Owned(name, loaded, entry)
        known += [one for one in loaded.index.drivers if registry.official or not is_official(one)]
    if not_theirs:
        raise StartupError(
            f"{name} is the name of an official driver, and registry {' and '.join(not_theirs)} is not marked "
            "official; if you trust it with such names, say so in config.toml: official = true"
        )
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.8)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(known)) or 'none'}"
    asked = ", ".join(registry.shown for registry in registries)
    raise StartupError(f"no driver {name} in registry {asked}; {hint}")


def choose(owned: Owned, version: str | None, platform: str) -> Build:
    """The build of a version, the latest unless one is given. Raises StartupError that says what there is."""
    name, entry, registry = owned.name, owned.entry, owned.registry
    whose = f"{name} belongs to registry {registry.shown}"
    if not entry.versions:
        where = f"; its source is at {entry.repo}" if entry.repo else ""
        raise StartupError(f"{whose}, which lists no build of it to install{where}")
    if version is not None:
        check_version(version)
    wanted = version or (entry.latest_version if entry.latest_version in entry.versions else newest(entry.versions))
    found = entry.versions.get(wanted)
    if found is None:
        has = ", ".join(in_order(entry.versions))
        raise StartupError(f"{whose}, which has no version {wanted}; it has {has}. Other registries are not asked")
    builds = {_normal(key): (key, artifact) for key, artifact in found.artifacts.items()}
    chosen = builds.get(platform) or builds.get(ANY_PLATFORM)
    if chosen is None:
        others = [one for one in in_order(entry.versions) if _runs_on(entry, one, platform)]
        instead = f"; there is one of version {others[-1]}: {name}=={others[-1]}" if others else ""
        raise StartupError(
            f"{name} {wanted} has no build for {platform}; it has builds for {', '.join(builds) or 'nothing'}{instead}"
        )
    key, artifact = chosen
    check_version(wanted)
    return Build(name, wanted, key, artifact, _location(owned, artifact), registry)


def compare(one: str, other: str) -> int:
    """-1, 0 or 1 as `one` is older, the same or newer; versions that are not numbered in the usual way are only equal
    or not, and then neither is older: 1."""
    try:
        left, right = Ordered(one), Ordered(other)
    except InvalidVersion:
        return 0 if one == other else 1
    return (left > right) - (left < right)


def in_order(versions: Iterable[str]) -> list[str]:
    """Oldest first; those that are not numbered in the usual way before all others."""

    def key(text: str) -> tuple[int, Ordered, str]:
        try:
            return 1, Ordered(text), text
        except InvalidVersion:
            return 0, Ordered("0"), text

    return sorted(versions, key=key)


def newest(versions: Iterable[str]) -> str:
    """The newest that is no trial version, if there is one."""
    ordered = in_order(versions)
    final = [text for text in ordered if not _is_trial(text)]
    return (final or ordered)[-1]


def _is_trial(version: str) -> bool:
    try:
        return Ordered(version).is_prerelease
    except InvalidVersion:
        return False


def _runs_on(entry: DriverEntry, version: str, platform: str) -> bool:
    return any(_normal(key) in (platform, ANY_PLATFORM) for key in entry.versions[version].artifacts)


def _normal(platform: str) -> str:
    return platform if platform == ANY_PLATFORM else normal_platform(platform)


def _location(owned: Owned, artifact: Artifact) -> str | Path:
    """Where an artifact is: its URL may be relative to the index. A server cannot name files of this machine."""
    base, url = owned.registry.location, artifact.url
    try:
        if isinstance(base, Path) and "://" not in url:
            return base.parent / url
        if isinstance(base, Path) and url.startswith("file://"):
            return Path(unquote(urlsplit(url).path))
        whole = urljoin(base, url) if isinstance(base, str) else url
        require_safe_url(whole)
    except (ValueError, StartupError) as error:
        raise StartupError(f"registry {owned.registry.shown}: the URL of {owned.name}: {error}") from None
    return whole
