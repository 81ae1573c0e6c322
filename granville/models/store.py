"""The models of this user: `~/.granville/models`, what a reference means there, and what is still to be fetched.

A fetched file lies where its source says (`sha256-…/NAME`, `package-version/NAME`), so two files of one name do
not meet; files that a user puts anywhere below the folder are models as well.
"""

from __future__ import annotations

import difflib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from granville.config import home
from granville.errors import StartupError
from granville.fetch.progress import Progress, progress_bar, silent
from granville.fetch.sources import Source, fetch, is_here
from granville.fetch.trees import tree_bytes
from granville.fetch.verify import known_as, require_digest
from granville.hosting.fileless import is_fileless
from granville.models.catalogue import Catalogue, ModelEntry
from granville.models.gguf import ModelHeader, read_header
from granville.models.kinds import Kind, is_folder_model, kind_of
from granville.models.spec import FileRef, ModelRef, NameRef, parse_ref
from granville.models.tuned import is_tuned_file


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model that is here or could be: one of `path` and `entry` at least is there."""

    name: str
    path: Path | None
    """None: in the catalogue and not fetched."""
    size_bytes: int
    kind: Kind | None = None
    header: ModelHeader | None = None
    entry: ModelEntry | None = None
    problem: str | None = None
    """Why the file cannot be used."""


class ModelStore:
    def __init__(self, folder: Path | None = None, catalogue: Catalogue | None = None) -> None:
        self.folder = home() / "models" if folder is None else folder
        self.catalogue = Catalogue() if catalogue is None else catalogue

    async def resolve(self, ref: ModelRef | Source) -> Path | Source:
        """The file that a reference means, verified where its hash is known, or the source to fetch it from.

        Raises StartupError, with near names, for what is neither a file nor known.
        """
        if isinstance(ref, FileRef | NameRef):
            return await self._local(ref)
        place = self.place(ref)
        if await is_here(ref, place):
            return place
        return self._same_bytes(ref.sha256) or ref

    async def fetch(self, ref: ModelRef | Source, progress: Progress = silent) -> Path:
        """Resolve, and fetch what is missing."""
        found = await self.resolve(ref)
        if isinstance(found, Path):
            return found
        await fetch(found, self.place(found), progress)
        return self.place(found)

    def whereabouts(self, text: str) -> Path | None:
        """Where what was typed for a model leads on this disk, whether there is a model or not; None for what is
        fetched from elsewhere. Raises what `parse_ref` raises."""
        ref = parse_ref(text, unverified=True)
        if isinstance(ref, FileRef):
            return ref.path
        if not isinstance(ref, NameRef):
            return None
        typed = Path(ref.name)
        if typed.exists() or is_fileless(typed):
            return typed
        same = [path for path in self.paths() if ref.name in (path.name, path.stem)]
        return same[0] if len(same) == 1 else typed

    def place(self, source: Source) -> Path:
        return self.folder / source.place

    def paths(self) -> list[Path]:
        """Every model below the folder, a file or a folder, sorted; what tuning made of one is no model of its own."""
        found = []
        # Not rglob, which fails when a fetch removes its folder beside it meanwhile.
        for parent, folders, names in os.walk(self.folder):
            models = [name for name in folders if not name.startswith(".") and is_folder_model(Path(parent, name))]
            folders[:] = [name for name in folders if name not in models and not name.startswith(".")]
            files = (Path(parent, name) for name in names)
            found += [Path(parent, name) for name in models]
            found += [path for path in files if kind_of(path) and path.is_file() and not is_tuned_file(path)]
        return sorted(found)

    def files(self) -> list[ModelFile]:
        """Every model on disk, then those of the catalogue that are not. A broken file is listed with its problem."""
        named = {self.place(entry.origin): (name, entry) for name, entry in self.catalogue.models.items()}
        here = [_describe(path, *named.pop(path, (path.stem, None))) for path in self.paths()]
        return here + [ModelFile(name, None, entry.size_bytes, entry=entry) for name, entry in named.values()]

    def find(self, text: str) -> ModelFile:
        """The model that a person names, whether it is whole, broken or not fetched. Raises StartupError, with near
        names, when there is none."""
        ref = parse_ref(text, unverified=True)
        entry = self.catalogue.find(ref.name) if isinstance(ref, NameRef) else None
        if entry is not None:
            place = self.place(entry.origin)
            name = next(name for name, known in self.catalogue.models.items() if known is entry)
            if not place.exists():
                return ModelFile(name, None, entry.size_bytes, entry=entry)
            return _describe(place, name, entry)
        if isinstance(ref, FileRef | NameRef):
            path = self._find(ref)
            if is_fileless(path):
                raise StartupError(f"{text} is a model without a file: there is nothing of it on this disk")
        else:
            path = self.place(ref)
            if not path.exists():
                raise StartupError(f"{text} is not on this disk; `granville download` fetches it")
        same = (file for file in self.files() if file.path == path)
        return next(same, None) or _describe(path, path.stem, None)

    async def _local(self, ref: FileRef | NameRef) -> Path | Source:
        if isinstance(ref, NameRef):
            entry = self.catalogue.find(ref.name)
            if entry is not None:
                if ref.sha256 not in (None, entry.sha256):
                    raise StartupError(f"{ref.name}: the catalogue has the SHA-256 {entry.sha256}, not {ref.sha256}")
                return await self.resolve(entry.origin)
        path = self._find(ref)
        if ref.sha256 is not None:
            await require_digest(path, ref.sha256)
        return path

    def _same_bytes(self, sha256: str | None) -> Path | None:
        """A file of the store that came from elsewhere, has this hash, and has not changed since it was verified."""
        if sha256 is None:
            return None
        return next((path for path in self.paths() if (known := known_as(path)) and known.sha256 == sha256), None)

    def _find(self, ref: FileRef | NameRef) -> Path:
        typed = ref.path if isinstance(ref, FileRef) else Path(ref.name)
        try:
            kind = typed.stat().st_mode
        except FileNotFoundError:
            kind = 0
        except OSError as error:
            raise StartupError(f"{typed}: cannot be looked at: {error.strerror}") from error
        if stat.S_ISREG(kind) or is_folder_model(typed):
            return typed.absolute()
        if kind:
            what = "a folder that is no model" if stat.S_ISDIR(kind) else "not a file"
            raise StartupError(f"{typed}: {what}; name a model file")
        if isinstance(ref, NameRef) and is_fileless(typed):
            return typed
        if isinstance(ref, NameRef):
            same = [path for path in self.paths() if ref.name in (path.name, path.stem)]
            if len(same) == 1:
                return same[0]
            if same:
                raise StartupError(f"{typed}: which of {', '.join(map(str, same))}? Give the path")
        raise StartupError(self._missing(ref, typed))

    def _missing(self, ref: FileRef | NameRef, typed: Path) -> str:
        known = {name.lower(): name for name in self.catalogue.names()}
        known |= {name.lower(): name for path in self.paths() for name in (path.stem, path.name)}
        if typed.parent.is_dir():
            known |= {path.name.lower(): str(path) for path in typed.parent.glob("*.gguf")}
        near = [known[name] for name in difflib.get_close_matches(typed.name.lower(), known, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}?" if near else "`granville models` lists what there is"
        if isinstance(ref, FileRef):
            return f"there is no file {typed.absolute()}; {hint}"
        return f"no model {ref.name}: not a name of the catalogue, nor a file here or in {self.folder}; {hint}"


def _describe(path: Path, name: str, entry: ModelEntry | None) -> ModelFile:
    size, kind = tree_bytes(path), kind_of(path)
    if kind not in (None, "gguf"):
        return ModelFile(name, path, size, kind, entry=entry)
    try:
        return ModelFile(name, path, size, kind, header=read_header(path), entry=entry)
    except StartupError as error:
        return ModelFile(name, path, size, kind, entry=entry, problem=error.message)


async def obtain(ref: str, progress: Progress | None = None) -> Path:
    """The file of a model named by path, catalogue name or source, fetched if missing.

    Without a `progress` of the caller's own, one is shown on stderr when that is a terminal. Raises StartupError.
    """
    wanted = parse_ref(ref)
    if progress is not None:
        return await ModelStore().fetch(wanted, progress)
    with progress_bar() as bar:
        return await ModelStore().fetch(wanted, bar)
