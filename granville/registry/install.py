"""From what a person asked for to a driver in the store: found, fetched, verified, unpacked, checked, put in place.

In this order, and each step only after the one before: nothing is unpacked whose hash was not right, and no name is
touched before the driver is whole beside it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import trio
from msgspec import structs

from granville.errors import StartupError
from granville.fetch.pack import pack
from granville.fetch.place import require_space, sole_writer, why_not_written
from granville.fetch.progress import Progress, silent
from granville.fetch.unpack import unpack
from granville.fetch.verify import require_digest, sha256_file
from granville.hosting.manifest import DriverManifest, check_file, read_manifest, this_platform
from granville.hosting.store import RECORD, DriverStore, Installed, Record, bundled
from granville.registry.index import choose, compare, find_owner
from granville.registry.remote import load
from granville.registry.settings import Registry, without_secrets
from granville.registry.wanted import ByName, ByPath, ByUrl, Wanted

DOWNLOADS = ".downloads"
KEEP_PARTS_S = 7 * 86_400.0
"""A download that was cut short can be gone on with for so long."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an install."""

    name: str
    version: str
    folder: Path
    before: str | None
    """The version that was there; None: none was."""
    changed: bool
    """False: this version is there already, and nothing was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """What the driver has to be called; None: it may say so itself."""

    name: str | None = None
    version: str | None = None


@dataclass(kw_only=True)
class Installer:
    store: DriverStore
    registries: Sequence[Registry] = ()
    say: Callable[[str], None] = lambda sentence: None
    """Gets what a person should know beside the outcome."""
    progress: Progress = silent
    force: bool = False
    """Also the same version again, an older one, or a name that a bundled driver has."""

    async def install(self, wanted: Wanted) -> Outcome:
        """Raises StartupError. Cancelled, it leaves no more than a part of a download to go on with."""
        try:
            self.store.folder.mkdir(parents=True, exist_ok=True)
            await trio.to_thread.run_sync(self.store.clear_leftovers)
            await trio.to_thread.run_sync(self._forget_old_parts)
            match wanted:
                case ByName():
                    return await self._by_name(wanted)
                case ByUrl(url, sha256):
                    record = _record(without_secrets(url), sha256=sha256)
                    return await self._from_web(url, sha256, None, record, _Expected())
                case ByPath(path):
                    return await self._from_path(wanted, _record(str(path), sha256=wanted.sha256), _Expected())
        except OSError as error:
            raise why_not_written(self.store.folder, error) from error

    async def _by_name(self, wanted: ByName) -> Outcome:
        owned = await find_owner(wanted.name, self.registries, load, self.say)
        build = choose(owned, wanted.version, this_platform())
        self._refuse_bundled(build.name)
        there = self.store.find(build.name)
        if there is not None and (outcome := self._is_enough(there, build.version)):
            return outcome
        record = _record(
            without_secrets(str(build.location)), sha256=build.artifact.sha256, registry=build.registry.name
        )
        expected = _Expected(name=build.name, version=build.version)
        if isinstance(build.location, Path):
            return await self._from_path(ByPath(build.location, build.artifact.sha256), record, expected)
        return await self._from_web(build.location, build.artifact.sha256, build.artifact.size_bytes, record, expected)

    async def _from_web(
        self, url: str, sha256: str | None, size: int | None, record: Record, expected: _Expected
    ) -> Outcome:
        from granville.fetch.download import download

        if sha256 is None:
            with self.store.stage() as folder:
                archive = folder / _file_name(url)
                await download(url, archive, sha256=None, progress=self.progress)
                actual = await sha256_file(archive)
                self.say(f"not verified: {record.source} has the SHA-256 {actual}")
                return await self._from_archive(archive, structs.replace(record, sha256=actual), expected)
        # One folder a hash, so that the next install goes on with what this one may leave.
        folder = self.store.folder / DOWNLOADS / sha256[:32]
        archive = folder / _file_name(url)
        async with sole_writer(archive):
            await download(url, archive, sha256=sha256, size=size, progress=self.progress)
            try:
                return await self._from_archive(archive, record, expected)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    async def _from_path(self, wanted: ByPath, record: Record, expected: _Expected) -> Outcome:
        with self.store.stage() as folder:
            copy = folder / (wanted.path.name or "archive")
            if wanted.path.is_dir():
                manifest = await trio.to_thread.run_sync(read_manifest, wanted.path)
                await trio.to_thread.run_sync(pack, wanted.path, copy, manifest.name)
            else:
                # What is verified is what is unpacked, whatever becomes of the file meanwhile.
                require_space(folder, wanted.path.stat().st_size)
                await trio.to_thread.run_sync(shutil.copyfile, wanted.path, copy)
                actual = await sha256_file(copy)
                if wanted.sha256 is not None:
                    await require_digest(copy, wanted.sha256)
                record = structs.replace(record, sha256=actual)
            return await self._from_archive(copy, record, expected)

    async def _from_archive(self, archive: Path, record: Record, expected: _Expected) -> Outcome:
        with self.store.stage() as stage:
            inside = stage / "new"
            inside.mkdir()
            ready = await trio.to_thread.run_sync(lambda: unpack(archive, inside, progress=self.progress))
            manifest = await trio.to_thread.run_sync(_checked, ready, expected, record.source)
            self._refuse_bundled(manifest.name)
            async with self.store.changing(manifest.name):
                there = self.store.find(manifest.name)
                if there is not None and (outcome := self._is_enough(there, manifest.version)):
                    return outcome
                await self.store.put(ready, manifest, record, stage)
        folder = self.store.place(manifest.name)
        return Outcome(manifest.name, manifest.version, folder, there.version if there else None, changed=True)

    def _is_enough(self, there: Installed, version: str) -> Outcome | None:
        """What is there already is what was asked for. Raises StartupError when it is newer."""
        if self.force or there.version is None:
            return None
        order = compare(version, there.version)
        if order < 0:
            raise StartupError(
                f"{there.name} {there.version} is installed, which is newer than {version}; --force goes back to it"
            )
        return Outcome(there.name, there.version, there.folder, there.version, changed=False) if order == 0 else None

    def _refuse_bundled(self, name: str) -> None:
        for one in bundled():
            if one.name == name and not self.force:
                raise StartupError(
                    f"{name} {one.version} is there already, in the Python package {one.package}; with --force "
                    "another one of that name goes before it"
                )

    def _forget_old_parts(self) -> None:
        for folder in (self.store.folder / DOWNLOADS).glob("*"):
            if time.time() - folder.stat().st_mtime > KEEP_PARTS_S:
                shutil.rmtree(folder, ignore_errors=True)


def _checked(folder: Path, expected: _Expected, source: str) -> DriverManifest:
    """The manifest of an unpacked driver, which is for this machine and what was asked for. Raises StartupError."""
    (folder / RECORD).unlink(missing_ok=True)  # of another install
    try:
        manifest = read_manifest(folder)
        check_file(manifest, folder)
    except StartupError as error:
        # The folder that it names is about to be deleted.
        raise StartupError(f"{source}: {error.message.replace(f'{folder}/', '')}") from None
    for what, said, asked in (
        ("name", manifest.name, expected.name),
        ("version", manifest.version, expected.version),
    ):
        if asked is not None and said != asked:
            raise StartupError(f"{source}: its {what} is {said}, the registry says {asked}")
    return manifest


def _record(source: str, *, sha256: str | None = None, registry: str | None = None) -> Record:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Record(source=source, sha256=sha256, registry=registry, installed_at=now)


def _file_name(url: str) -> str:
    """What an archive from the web is called here: its name is only shown."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return name if name.isascii() and name.isprintable() and 0 < len(name) < 200 and name[0] != "." else "archive"
