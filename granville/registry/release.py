"""Publishing: a driver's folder becomes a release archive and an entry of an index, on the disk and perhaps signed.

```
DIR/registry.json  registry.json.sig  <name>/<version>/<name>-<platform>.tar.gz
```
The archive is written first, the index names it then, and the signature follows: a publication that is cut short leaves
an index that is right, or one whose signature is not and that nobody installs from until it is published again.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import trio

from granville.errors import StartupError
from granville.fetch.pack import pack
from granville.fetch.place import replace_file, size_of, sole_writer, sync, why_not_written
from granville.fetch.verify import sha256_file
from granville.hosting.manifest import (
    ANY_PLATFORM,
    DriverManifest,
    file_sha256,
    normal_platform,
    read_manifest,
    this_platform,
)
from granville.registry.index import compare
from granville.registry.schema import VERSION, parse_index
from granville.registry.settings import INDEX, require_safe_url
from granville.registry.signing import Signer

NAMING = {"official": "granville-<backend>", "community": "<vendor>-granville-<name>"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What was published."""

    name: str
    version: str
    platform: str
    archive: Path
    index: Path
    sha256: str
    size_bytes: int
    public_key: str | None
    """Whose signature is beside the index."""


@dataclass(kw_only=True)
class Publisher:
    to: Path
    """The folder with the index; made when it is not there."""
    base_url: str | None = None
    """Where that folder can be read; None leaves the URLs relative to the index."""
    signer: Signer | None = None
    license: str | None = None
    repo: str | None = None
    force: bool = False
    """Replace a build that was published with other bytes."""

    async def publish(self, folder: Path) -> Release:
        """Raises StartupError. The same folder gives the same archive, and publishing it again changes nothing."""
        manifest = await trio.to_thread.run_sync(read_manifest, folder)
        platform = _platform(manifest)
        _require_file(manifest, folder)
        if self.base_url is not None:
            require_safe_url(self.base_url)
        index = self.to / INDEX
        try:
            async with sole_writer(index):
                return await self._publish(folder, manifest, platform, index)
        except OSError as error:
            raise why_not_written(index, error) from error

    async def _publish(self, folder: Path, manifest: DriverManifest, platform: str, index: Path) -> Release:
        content = await trio.to_thread.run_sync(_read, index)
        signature = index.with_name(f"{INDEX}.sig")
        if self.signer is None and signature.exists():
            raise StartupError(f"{index} is signed; give --sign KEY, or nobody can install from it any longer")
        place = self.to / manifest.name / manifest.version / f"{manifest.name}-{platform}.tar.gz"
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".packing-", dir=self.to) as packing:
            packed = Path(packing, place.name)
            await trio.to_thread.run_sync(pack, folder, packed, manifest.name)
            digest, size = await sha256_file(packed), size_of(packed)
            artifact = {"url": self._url(place), "sha256": digest, "size_bytes": size}
            if manifest.abi is not None:
                artifact["abi"] = manifest.abi
            before = _artifacts(content, manifest).get(platform)
            if before is not None and before.get("sha256") != digest and not self.force:
                raise StartupError(
                    f"{manifest.name} {manifest.version} for {platform} is published already, with other bytes; those "
                    "who have it would never get this one: give it another version (or --force)"
                )
            os.replace(packed, place)
        for parent in (place.parent, place.parent.parent, self.to):
            sync(parent)
        self._enter(content, manifest, platform, artifact)
        data = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
        parse_index(data, str(index))
        replace_file(index, data, 0o644)
        if self.signer is not None:
            replace_file(signature, self.signer.sign(data), 0o644)
        return Release(
            name=manifest.name,
            version=manifest.version,
            platform=platform,
            archive=place,
            index=index,
            sha256=digest,
            size_bytes=size,
            public_key=self.signer.public_key if self.signer else None,
        )

    def _url(self, place: Path) -> str:
        relative = place.relative_to(self.to).as_posix()
        return relative if self.base_url is None else f"{self.base_url.rstrip('/')}/{relative}"

    def _enter(
        self, content: dict[str, Any], manifest: DriverManifest, platform: str, artifact: dict[str, Any]
    ) -> None:
        """Write the build into the index. What else is there, known here or not, stays."""
        entry = content["drivers"].setdefault(manifest.name, {})
        versions = entry.setdefault("versions", {})
        versions.setdefault(manifest.version, {}).setdefault("artifacts", {})[platform] = artifact
        latest = entry.get("latest_version") or manifest.version
        if latest not in versions or compare(manifest.version, latest) > 0:
            latest = manifest.version
        entry["latest_version"] = latest
        entry["platforms"] = sorted(versions[latest].get("artifacts", {}))
        entry["official"] = manifest.official
        entry["repo"] = self.repo or entry.get("repo")
        if latest == manifest.version:
            entry["description"] = manifest.description
            entry["capabilities"] = list(manifest.capabilities)
            entry["license"] = self.license or entry.get("license")


def _read(index: Path) -> dict[str, Any]:
    """The index as it is, or a new one. Raises StartupError for one that is broken: it is not written over."""
    try:
        data = index.read_bytes()
    except FileNotFoundError:
        return {"version": VERSION, "drivers": {}, "naming_convention": NAMING}
    parse_index(data, str(index))
    content = msgspec.json.decode(data, type=dict[str, Any])
    content.setdefault("drivers", {})
    return content


def _artifacts(content: dict[str, Any], manifest: DriverManifest) -> dict[str, Any]:
    """The builds of this version that the index has."""
    found: Any = content["drivers"]
    for key in (manifest.name, "versions", manifest.version, "artifacts"):
        found = found.get(key, {})
    return dict(found)


def _platform(manifest: DriverManifest) -> str:
    """What the archive is for: as driver.json says it, else what it must be."""
    if manifest.platform:
        return manifest.platform if manifest.platform == ANY_PLATFORM else normal_platform(manifest.platform)
    return ANY_PLATFORM if manifest.abi == "python" else this_platform()


def _require_file(manifest: DriverManifest, folder: Path) -> None:
    """The library or module is there, and is the one that driver.json tells of; for whichever machine it is."""
    path = manifest.file(folder)
    if not path.is_file():
        raise StartupError(f"{folder}: there is no {path.relative_to(folder)}, which its driver.json names")
    if manifest.sha256 and file_sha256(path) != manifest.sha256:
        raise StartupError(f"{path}: its SHA-256 is not the one in driver.json; was it built again?")
