"""A shared library as a driver: ABI v2 if it has that, else v1. drivers/include/granville_driver.h is the contract."""

from __future__ import annotations

from pathlib import Path

from granville.errors import StartupError
from granville.hosting import cabi_v1, cabi_v2
from granville.hosting.cabi_v1 import V1Driver
from granville.hosting.cabi_v2 import V2Driver
from granville.hosting.library import Library
from granville.hosting.manifest import MANIFEST, Abi

HEADER = "granville_driver.h"


def open_driver(path: Path, abi: Abi | None = None) -> V1Driver | V2Driver:
    """The driver in a library; `abi` is what its driver.json says that it is. Raises StartupError for what is no
    library, no driver, or not the one it is said to be."""
    library = Library.open(path)
    table = cabi_v2.find_vtable(library) if abi != "c1" else None
    if table is not None:
        return V2Driver(library, table)
    functions = cabi_v1.find_functions(library) if abi != "c2" else None
    if functions is not None:
        return V1Driver(library, functions)
    if abi is not None:
        symbol = cabi_v2.VTABLE if abi == "c2" else f"{cabi_v1.VTABLE}, nor the functions of v1"
        raise StartupError(f'{library.path}: {MANIFEST} says "abi": "{abi}", and it does not export {symbol}')
    raise StartupError(
        f"{library.path}: is no driver: it exports neither {cabi_v2.VTABLE} nor {cabi_v1.VTABLE}, "
        f"nor any of the functions of {HEADER}"
    )


def header_path() -> Path:
    """The header that drivers in C are built with: in a checkout at its place, else the package's own copy."""
    here = Path(__file__).resolve().parent
    packaged = here / "include" / HEADER
    return packaged if packaged.exists() else here.parents[1] / "drivers" / "include" / HEADER
