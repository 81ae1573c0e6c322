"""Drivers in C for tests: the samples, and those of broken_drivers/, each built by the machine's own compiler."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

from granville.hosting.cabi import header_path
from granville.hosting.manifest import MANIFEST, library_name

ROOT = Path(__file__).parents[2]
ECHO = ROOT / "drivers" / "echo"
BROKEN = Path(__file__).parent / "broken_drivers"
TELLS = Path(__file__).parent / "tells.c"
"""Answers with what it was given."""
BROKEN_NAME, BROKEN_VERSION = "granville-broken", "1.0"
"""What those drivers call themselves, unless that is what is broken."""
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


def compiler(name: str = "cc") -> str:
    found = shutil.which(name)
    assert found, f"a C compiler is needed: there is no {name} on PATH"
    return found


def run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def build(source: Path, target: Path, *flags: str) -> Path:
    """A shared library out of one file in C."""
    target.parent.mkdir(parents=True, exist_ok=True)
    run(
        compiler(), "-std=c99", *STRICT, "-g", "-fPIC", "-shared", f"-I{header_path().parent}", *flags, source,
        "-o", target,
    )  # fmt: skip
    return target


def samples(folder: Path) -> Path:
    """Both samples, built by their own Makefile: `v1` and `v2` in the folder."""
    run("make", "--no-print-directory", "-C", ECHO, f"OUT={folder}", f"CC={compiler()}")
    return folder


def broken(name: str, folder: Path) -> Path:
    """The library of broken_drivers/NAME.c, alone in a folder of its own."""
    return build(BROKEN / f"{name}.c", folder / name / library_name(BROKEN_NAME))


def describe(library: Path, **fields: object) -> Path:
    """Put a driver.json beside a library; its folder."""
    manifest = {"name": BROKEN_NAME, "version": BROKEN_VERSION, "lib_name": library.name} | fields
    (library.parent / MANIFEST).write_text(json.dumps(manifest))
    return library.parent


def of_another_machine(library: Path, target: Path) -> Path:
    """A copy of an ELF library whose header names a processor that this one is not (e_machine, at byte 18)."""
    data = bytearray(library.read_bytes())
    assert data[:4] == b"\x7fELF"
    other = 183 if struct.unpack_from("<H", data, 18) != (183,) else 62
    struct.pack_into("<H", data, 18, other)
    target.write_bytes(data)
    return target
