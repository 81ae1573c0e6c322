"""Drivers in Python that lie in a folder: imported from there, and from nowhere else in the process."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from types import ModuleType

from granville.errors import StartupError

PACKAGE = "granville_driver_in_"


def load_class(folder: Path, file: Path, entry: str) -> object:
    """What `module:Class` names in the folder. Raises StartupError.

    The folder becomes a package under a name of its own, and sys.path stays as it is: two drivers may both have a
    module `driver`, and neither hides a module of anyone else. Modules of one folder import each other relatively.
    """
    module_name, _, attribute = entry.partition(":")
    package = _package(folder.resolve())
    try:
        module = importlib.import_module(f"{package}.{module_name}")
    except Exception as error:  # noqa: BLE001  # what its module does when it is imported is the driver's own
        raise StartupError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from None
    try:
        found: object = getattr(module, attribute)
    except AttributeError:
        raise StartupError(f"{file}: has no {attribute}, which entry {entry!r} names") from None
    return found


def _package(folder: Path) -> str:
    """A package whose modules are the folder's files, made when it is first asked for."""
    name = PACKAGE + hashlib.sha256(str(folder).encode(errors="surrogateescape")).hexdigest()[:16]
    if name not in sys.modules:
        package = ModuleType(name, f"The driver in {folder}.")
        package.__path__ = [str(folder)]
        sys.modules[name] = package
        importlib.invalidate_caches()
    return name
