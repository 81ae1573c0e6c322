"""Which driver a name means: `module:Class`, a path, one installed in the drivers' folder, or an entry point.

| named | is |
| --- | --- |
| `my_module:MyDriver` | a class that can be imported |
| `./folder`, `libmine.so` | a folder with a driver.json, or a library; what has a `/` or a library's ending is a path |
| `acme-granville-tpu` | `$GRANVILLE_HOME/drivers/acme-granville-tpu` |
| `granville-llama` | an entry point in the group `granville.drivers` |
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from granville.config import home
from granville.errors import StartupError
from granville.hosting.cabi import open_driver
from granville.hosting.folder import load_class
from granville.hosting.interface import Driver, Model, ModelSpec
from granville.hosting.manifest import MANIFEST, DriverManifest, check_file, check_same, read_manifest

GROUP = "granville.drivers"
LIBRARY_ENDINGS = (".so", ".dylib", ".dll")

log = logging.getLogger(__name__)

_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def find_driver(name: str) -> Driver:
    """A new driver object. Raises StartupError for a name that nothing answers to, what is no driver, and one that is
    not what its driver.json says."""
    try:
        return _checked(_found(name))
    except StartupError as error:
        raise StartupError(f"--driver {name}: {error.message}") from None


def is_name(text: str) -> bool:
    """Whether it can only mean what is installed: no file and no module of the caller's choice is opened for it."""
    return bool(text) and not _CLASS.fullmatch(text) and not _is_path(text) and ":" not in text


def drivers_folder() -> Path:
    """Where drivers are installed, a folder each."""
    return home() / "drivers"


def installed() -> list[str]:
    """The names that `find_driver` takes: folders with a driver.json, and entry points."""
    folders = {path.parent.name for path in drivers_folder().glob(f"*/{MANIFEST}")}
    return sorted(folders | {point.name for point in entry_points(group=GROUP)})


def naming(type: str) -> list[str]:
    """The installed drivers whose driver.json names a type of models, by name. One that cannot be read names none."""
    found = []
    for path in sorted(drivers_folder().glob(f"*/{MANIFEST}")):
        try:
            capable = type in read_manifest(path.parent).capabilities
        except StartupError as error:
            log.warning("a driver is passed over: %s", error)
            continue
        found += [path.parent.name] if capable else []
    return found


def _found(name: str) -> object:
    if _CLASS.fullmatch(name):
        module, _, attribute = name.partition(":")
        try:
            return _made(getattr(import_module(module), attribute))
        except (ImportError, AttributeError, ValueError) as error:
            raise StartupError(str(error)) from None
    if _is_path(name):
        return _at(Path(name).expanduser())
    folder = drivers_folder() / name
    if name and name not in (".", "..") and (folder / MANIFEST).is_file():
        return _in_folder(folder, expected=name)
    for point in entry_points(group=GROUP):
        if point.name == name:
            try:
                return _made(point.load())
            except (ImportError, AttributeError) as error:
                raise StartupError(f"cannot be loaded: {error}") from None
    raise StartupError(f"no such driver is installed; installed are: {', '.join(installed()) or 'none'}")


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith(LIBRARY_ENDINGS)


def _at(path: Path) -> object:
    if path.is_dir():
        return _in_folder(path)
    if not path.exists():
        raise StartupError("there is no such file or folder")
    if (path.parent / MANIFEST).is_file():
        manifest = read_manifest(path.parent)
        if manifest.abi != "python" and manifest.file(path.parent).name == path.name:
            return _in_folder(path.parent)
    return open_driver(path)


def _in_folder(folder: Path, expected: str | None = None) -> object:
    manifest = read_manifest(folder)
    if expected is not None and manifest.name != expected:
        raise StartupError(f"{folder / MANIFEST}: name is {manifest.name!r}, in the folder of {expected}")
    path = check_file(manifest, folder)
    if manifest.abi == "python":
        driver = _checked(_made(load_class(folder, path, manifest.entry)))
    else:
        driver = open_driver(path, manifest.abi)
    check_same(manifest, driver.name, driver.version, folder)
    _describe(driver, manifest)
    return driver


def _describe(driver: Driver, manifest: DriverManifest) -> None:
    """Its `config` holds at every load, under what is given there, and both it and the schema can be read from the
    driver, unless its own code says them."""
    load, defaults = driver.load, manifest.config

    def load_with_defaults(spec: ModelSpec) -> Model:
        return load(replace(spec, options={**defaults, **spec.options}))

    said = {"config": defaults, "config_schema": manifest.config_schema}
    added = {name: value for name, value in said.items() if value and not hasattr(driver, name)}
    try:
        for name, value in (added | ({"load": load_with_defaults} if defaults else {})).items():
            setattr(driver, name, value)
    except AttributeError as error:
        raise StartupError(f"{MANIFEST} has settings, and they find no place in the driver: {error}") from None


def _made(found: object) -> object:
    """An object of what was found, a class."""
    if not callable(found):
        raise StartupError(f"this is no class, but {found!r:.80}")
    return found()


def _checked(made: object) -> Driver:
    if not isinstance(made, Driver):
        raise StartupError("this is no driver; it lacks load(), name or version")
    return made
