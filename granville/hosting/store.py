"""The drivers of this user: `~/.granville/drivers/<name>`, put there whole, replaced whole, and not while in use.

A driver is made ready in a folder `.stage-…` beside them and then renamed; the one that it replaces changes places with
it in the same step and is deleted there. So whenever a process is killed, a name means the old driver or the new one,
and what is left over is a stage that no process holds: the next install clears it away. A daemon that uses a driver
holds a shared flock(2) on its folder (`hold`); whoever replaces or removes it takes that lock alone.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import msgspec
import trio

from granville.errors import StartupError
from granville.fetch.place import sole_writer, sync
from granville.hosting.locate import GROUP, drivers_folder
from granville.hosting.manifest import MANIFEST, DriverManifest, check_file, read_manifest
from granville.hosting.swap import exchange

RECORD = "installed.json"
STAGE = ".stage-"
REPLACED = "replaced"
"""In a stage: the driver that was moved aside, where two folders cannot change places in one step."""

log = logging.getLogger(__name__)
_held: dict[Path, int] = {}
"""Locks that this process keeps to its end: a library that was loaded stays loaded."""


class InUse(StartupError):
    """A driver that a daemon is using."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a driver came from: `installed.json` in its folder."""

    source: str
    """A URL, or the path of an archive or folder."""
    sha256: str | None = None
    """Of the archive; None for a folder."""
    registry: str | None = None
    """The name of the registry that it is from."""
    installed_at: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A folder of the store. `problem` says why its driver cannot be used."""

    name: str
    folder: Path
    size_bytes: int
    manifest: DriverManifest | None = None
    record: Record | None = None
    problem: str | None = None

    @property
    def version(self) -> str | None:
        return self.manifest.version if self.manifest else None


def hold(folder: Path) -> None:
    """Mark the driver in this folder as used, until the process ends. Raises InUse while it is being changed."""
    folder = folder.resolve()
    if folder in _held:
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StartupError(f"{folder}: cannot be opened: {error.strerror}") from None
    if not _lock(descriptor, fcntl.LOCK_SH) or not _is_at(descriptor, folder):
        os.close(descriptor)
        raise InUse(f"{folder.name} is being replaced or removed at this moment; try again")
    _held[folder] = descriptor


def hold_named(name: str) -> None:
    """The same for what `--driver` may name: a driver of the store, or a folder. Others need no lock."""
    folder = Path(name).expanduser() if "/" in name else drivers_folder() / name
    if (folder / MANIFEST).is_file():
        hold(folder)


class DriverStore:
    def __init__(self, folder: Path | None = None) -> None:
        self.folder = drivers_folder() if folder is None else folder

    def place(self, name: str) -> Path:
        return self.folder / name

    def find(self, name: str) -> Installed | None:
        """What is installed under a name."""
        folder = self.place(name)
        return self._describe(folder) if folder.is_dir() else None

    def installed(self) -> list[Installed]:
        """Every driver, by name. A broken one is listed with its problem."""
        try:
            folders = sorted(path for path in self.folder.iterdir() if not path.name.startswith(".") and path.is_dir())
        except FileNotFoundError:
            return []
        return [self._describe(folder) for folder in folders]

    def _describe(self, folder: Path) -> Installed:
        size = sum(Path(parent, name).lstat().st_size for parent, _, names in os.walk(folder) for name in names)
        try:
            manifest = read_manifest(folder)
            if manifest.name != folder.name:
                raise StartupError(f"{folder / MANIFEST}: its name is {manifest.name}, its folder's {folder.name}")
        except StartupError as error:
            return Installed(folder.name, folder, size, problem=error.message)
        return Installed(folder.name, folder, size, manifest, read_record(folder))

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """An empty folder in the same file system, locked while it is used; gone afterwards, with what is in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            folder = Path(tempfile.mkdtemp(prefix=STAGE, dir=self.folder))
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            # Between the two lines another process may have taken it for a leftover.
            if _lock(descriptor, fcntl.LOCK_EX) and _is_at(descriptor, folder):
                break
            os.close(descriptor)
        try:
            yield folder
        finally:
            _clear(folder, self.folder)
            os.close(descriptor)

    def clear_leftovers(self) -> None:
        """Remove the stages of processes that were killed, and put back what one of them had moved aside."""
        for folder in self.folder.glob(f"{STAGE}*"):
            try:
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            if _lock(descriptor, fcntl.LOCK_EX):
                log.info("clearing what an install that was cut short has left: %s", folder.name)
                _clear(folder, self.folder)
            os.close(descriptor)

    async def put(self, ready: Path, manifest: DriverManifest, record: Record, stage: Path) -> None:
        """The folder `ready`, which lies in `stage`, becomes the driver of its name, on the disk when this returns.

        The caller is in `changing(name)`. Raises InUse, or StartupError for a file that is not as it should be.
        """
        await trio.to_thread.run_sync(self._put, ready, manifest, record, stage)

    def _put(self, ready: Path, manifest: DriverManifest, record: Record, stage: Path) -> None:
        check_file(manifest, ready)
        (ready / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record)))
        sync_tree(ready)
        target = self.place(manifest.name)
        if not target.exists():
            os.rename(ready, target)
        else:
            with _alone(target):
                if not exchange(ready, target):
                    aside = stage / REPLACED
                    aside.mkdir()
                    os.rename(target, aside / manifest.name)
                    os.rename(ready, target)
        sync(self.folder)

    async def remove(self, name: str) -> None:
        """Raises InUse while a daemon uses it. The caller is in `changing(name)`."""
        await trio.to_thread.run_sync(self._remove, name)

    def _remove(self, name: str) -> None:
        with self.stage() as stage, _alone(self.place(name)):
            os.rename(self.place(name), stage / name)
            sync(self.folder)

    def changing(self, name: str) -> AbstractAsyncContextManager[None]:
        """Held by whoever replaces or removes the driver of this name."""
        return sole_writer(self.place(name))


@dataclass(frozen=True, slots=True)
class Bundled:
    """A driver that came as a Python package: an entry point."""

    name: str
    version: str
    package: str


def bundled() -> list[Bundled]:
    """Every driver of a Python package, by name."""
    found = {}
    for point in entry_points(group=GROUP):
        package = point.dist
        found[point.name] = Bundled(
            point.name, package.version if package else "-", package.name if package else point.value
        )
    return [found[name] for name in sorted(found)]


def read_record(folder: Path) -> Record | None:
    """None for a driver that was put there by hand."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.warning("%s cannot be read: %s", folder / RECORD, error)
        return None


def sync_tree(folder: Path) -> None:
    """Everything in it is on the disk when this returns."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def _clear(stage: Path, drivers: Path) -> None:
    """Whatever was moved aside goes back to its name when that has stayed free; the rest is deleted."""
    for aside in stage.glob(f"{REPLACED}/*"):
        target = drivers / aside.name
        if not target.exists():
            os.rename(aside, target)
    shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not _lock(descriptor, fcntl.LOCK_EX):
            raise InUse(f"{folder.name} is in use by a running daemon; end that first (`granville status` shows it)")
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
