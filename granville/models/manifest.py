"""manifest.yaml: what a daemon serves and where, in one file for `granville serve --manifest`.

    name: kitchen
    version: "1"
    driver: granville-llama
    models:
      main: {source: smollm2, context_size: 4096, gpu_layers: -1}
      mini: {source: ./minilm.gguf, type: embedding, slots: 2}
    server: {socket: /tmp/granville.sock, port: 8080, queue_size: 1000, workers: 8}

A model's name is its id; whatever else stands with it is an option of its driver. Paths are the file's neighbours. The
text is read by ruamel.yaml, whose YAML 1.2 keeps `on` and `no` as words and which knows where each key stands; values
are checked by msgspec (hosting/options.py). What is wrong is said with its line and column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import msgspec
from msgspec import Meta

from granville.config import MAX_SOCKET_PATH_BYTES
from granville.errors import StartupError
from granville.hosting.options import Layer, OptionSchema, WrongOption
from granville.models.kinds import is_folder_model
from granville.models.pool import TYPES, Wanted, check_id, check_models
from granville.wire.messages import ModelType

T = TypeVar("T", bound=msgspec.Struct)
FILE_NAME = "manifest.yaml"
MAX_MANIFEST_BYTES = 256 << 10
MAX_VALUES = 10_000
"""In the whole file, aliases spelt out."""


class Server(msgspec.Struct, frozen=True):
    """The daemon's own settings; None leaves one to its default."""

    socket: Annotated[str, Meta(min_length=1, max_length=MAX_SOCKET_PATH_BYTES)] | None = None
    port: Annotated[int, Meta(ge=0, le=65535)] | None = None
    queue_size: Annotated[int, Meta(ge=1)] | None = None
    workers: Annotated[int, Meta(ge=1)] | None = None
    """The slots of each model that says nothing else."""


class Entry(msgspec.Struct, frozen=True):
    """What a model has beside its driver's options."""

    source: Annotated[str, Meta(min_length=1)]
    type: ModelType | None = None
    driver: Annotated[str, Meta(min_length=1)] | None = None
    slots: Annotated[int, Meta(ge=1)] | None = None


class Top(msgspec.Struct, frozen=True):
    name: str
    models: dict[str, Any]
    version: str | int | float = ""
    driver: Annotated[str, Meta(min_length=1)] | None = None
    driver_config: dict[str, Any] | None = None
    """Options of all models' drivers."""
    server: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    path: Path
    name: str
    version: str
    models: tuple[Wanted, ...]
    server: Server
    driver: str | None
    """Of models that name none."""
    driver_config: Layer

    def choose(self, asked: Iterable[Wanted]) -> list[Wanted]:
        """All of its models, or those that were asked for: a plain word that is a name here means that model, anything
        else is a model beside it. Raises StartupError."""
        named = {one.text: own for own in self.models for one in (Wanted(str(own.id or own.type)),)}
        return check_models([named.get(one.text, one) for one in asked] or list(self.models))


def read_manifest(path: Path) -> Manifest:
    """Of a file, or of the manifest.yaml in a folder. Raises StartupError: `FILE:LINE:COLUMN: what would be right`."""
    path = path / FILE_NAME if path.is_dir() else path
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise StartupError(f"--manifest {path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise StartupError(f"{path}: over {MAX_MANIFEST_BYTES >> 10} KiB; this is no manifest of a daemon")
    document = Document(path, data)
    top = document.read(Top, document.root, "the manifest")
    server = document.read(Server, document.map(document.root, "server"), "server")
    models = document.map(document.root, "models")
    if not models:
        raise document.wrong(document.root, "models", "there is none; for example `models: {main: {source: smollm2}}`")
    found = [_model(document, models, name) for name in models]
    own = document.map(document.root, "driver_config")
    return Manifest(
        path,
        top.name,
        str(top.version),
        tuple(check_models(found)),
        server if server.socket is None else msgspec.structs.replace(server, socket=str(path.parent / server.socket)),
        top.driver,
        Layer(str(path), own, shared=True, places=document.places(own)),
    )


def _model(document: Document, models: Mapping[str, object], name: str) -> Wanted:
    given = document.map(models, name)
    plain = {key: value for key, value in given.items() if key in Entry.__struct_fields__}
    options = {key: value for key, value in given.items() if key not in plain}
    if "source" not in plain:
        raise document.wrong(models, name, "`source` is missing: a path, a name such as smollm2, pypi://… or https://…")
    entry = document.read(Entry, given, f"the model {name}", only=plain)
    named_by_type = next((known for known in TYPES if known == name), None)
    if named_by_type and entry.type not in (None, named_by_type):
        raise document.wrong(models, name, f"is the name of a type, and this model's is {entry.type}; choose another")
    if not named_by_type:
        try:
            check_id(name)
        except StartupError as error:
            raise document.wrong(models, name, error.message) from None
    return Wanted(
        _source(document.path.parent, entry.source),
        named_by_type or entry.type,
        None if named_by_type else name,
        entry.driver,
        entry.slots,
        Layer(str(document.path), options, places=document.places(given)),
    )


def _source(folder: Path, source: str) -> str:
    """A path is the manifest's neighbour; a name, and what lies elsewhere, is what it is on the command line."""
    if "://" in source or source.startswith("~") or Path(source).is_absolute():
        return source
    beside = folder / source
    is_beside = "/" in source or source.startswith(".") or beside.is_file() or is_folder_model(beside)
    return str(beside) if is_beside else source


class Document:
    """The file's content as plain maps, lists and scalars, with where every key stands."""

    def __init__(self, path: Path, data: bytes) -> None:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError

        self.path = path
        self._values = 0
        self._places: dict[int, dict[str, str]] = {}
        self._keep: list[object] = []
        try:
            loaded = YAML().load(data.decode())
            root = self._plain(loaded, str(path))
        except UnicodeDecodeError as error:
            raise StartupError(f"{path}: not UTF-8, at byte {error.start}") from None
        except RecursionError:
            raise StartupError(f"{path}: nested too deeply for a manifest") from None
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
            raise StartupError(f"{where}: not YAML: {error.problem or error.context}") from None
        except YAMLError as error:
            raise StartupError(f"{path}: not YAML: {error}") from None
        if not isinstance(root, dict):
            raise StartupError(f"{path}: expected a map with `name` and `models`, got {type(root).__name__}")
        self.root: dict[str, Any] = root

    def map(self, parent: Mapping[str, Any], key: str) -> dict[str, Any]:
        """A map under a key; an empty one where nothing is."""
        value = parent.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(parent, key, f"expected a map, got {value!r}")
        return value

    def read(self, kind: type[T], values: Mapping[str, Any], owner: str, only: Mapping[str, Any] | None = None) -> T:
        """The struct out of a map, each key checked by itself. Raises StartupError at the key."""
        schema = OptionSchema(owner, msgspec.json.schema(kind)["$defs"][kind.__name__])
        checked = {}
        for key, value in (values if only is None else only).items():
            try:
                checked[key] = schema.check(key, value)
            except WrongOption as error:
                raise self.wrong(values, key, str(error)) from None
        for key in schema.required:
            if key not in checked:
                raise StartupError(f"{self.path}: {owner} lacks `{key}`")
        return kind(**checked)

    def places(self, values: Mapping[str, Any]) -> dict[str, str]:
        """`FILE:LINE:COLUMN: key` for the keys of a map of this document."""
        return self._places.get(id(values), {})

    def wrong(self, parent: Mapping[str, Any], key: str, sentence: str) -> StartupError:
        return StartupError(f"{self.places(parent).get(key, f'{self.path}: {key}')}: {sentence}")

    def _plain(self, value: Any, where: str) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise StartupError(f"{self.path}: more than {MAX_VALUES} values, aliases spelt out; this is no manifest")
        tag = getattr(getattr(value, "tag", None), "value", None)
        if tag is not None:
            raise StartupError(f"{where}: the tag {tag} has no meaning here")
        if isinstance(value, dict):
            places = {str(key): f"{self._at(value, key, where)}: {key}" for key in value}
            made = {str(key): self._plain(item, places[str(key)]) for key, item in value.items()}
            self._places[id(made)] = places
            self._keep.append(made)  # as long as the document lives, no other map has this id
            return made
        if isinstance(value, list):
            return [self._plain(item, where) for item in value]
        if value is None or isinstance(value, bool):
            return value
        for kind in (int, float, str):
            if isinstance(value, kind):  # some are of ruamel's own types, which remember how they were written
                return kind(value)
        raise StartupError(f"{where}: a {type(value).__name__} has no meaning here; a text needs quotes")

    def _at(self, mapping: Any, key: object, otherwise: str) -> str:
        try:
            line, column = cast("tuple[int, int]", mapping.lc.key(key))
        except (KeyError, AttributeError):  # merged in from elsewhere by `<<`
            return otherwise
        return f"{self.path}:{line + 1}:{column + 1}"
