"""For which machine a shared library is built, told from its first bytes, before anything opens it.

Formats: ELF (System V gABI, e_type and e_machine), Mach-O (mach/machine.h, mach-o/fat.h), PE (only that it is one).
"""

from __future__ import annotations

import struct
from pathlib import Path

from granville.errors import StartupError
from granville.hosting.manifest import this_platform

HEAD_BYTES = 4096
MAX_FAT_BUILDS = 32
"""Of a Mach-O that holds several; Java classes begin alike, with a larger number there."""

_ELF_MACHINES = {
    3: "x86", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64",
    258: "loongarch64",
}  # fmt: skip
_ELF_SHARED = 3
_ELF_LOADED = 1
"""p_type of a segment that is mapped."""
_ELF_HEADER_BYTES = 64
_ELF_TYPES = {1: "an object file", 2: "a program", 4: "a core dump"}
_MACH_MACHINES = {7: "x86", 0x01000007: "x86_64", 12: "arm", 0x0100000C: "arm64"}


def check_library(path: Path) -> None:
    """Raises StartupError for what this machine cannot open as a library, with what it is instead."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        raise StartupError(f"{path}: is empty, and no shared library")
    platforms = library_platforms(head)
    if not platforms:
        raise StartupError(f"{path}: is no shared library; it begins with {head[:8]!r}")
    here = this_platform()
    if here not in platforms:
        raise StartupError(f"{path}: is built for {' and '.join(platforms)}, and this machine is {here}")
    if not head.startswith(b"\x7fELF"):
        return
    if (kind := _elf_type(head)) != _ELF_SHARED:
        what = _ELF_TYPES.get(kind, f"an ELF file of type {kind}")
        raise StartupError(f"{path}: is {what}, not a shared library; link it with -shared")
    # The system maps what the header tells of and dies of SIGBUS where the file has ended before.
    size = path.stat().st_size
    if size < (end := _elf_end(head)):
        raise StartupError(f"{path}: is cut off: it has {size} bytes of at least {end}; build or fetch it again")


def library_platforms(head: bytes) -> list[str]:
    """The platforms that a library which begins so is built for, as `linux-x86_64`; none when it is no library."""
    if head.startswith(b"\x7fELF") and len(head) >= _ELF_HEADER_BYTES:
        (machine,) = struct.unpack_from(f"{_elf_order(head)}H", head, 18)
        return [f"linux-{_ELF_MACHINES.get(machine, f'machine-{machine}')}"]
    if head[:4] in (b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe") and len(head) >= 8:
        return [_mach(struct.unpack_from("<I", head, 4)[0])]
    if head[:4] == b"\xca\xfe\xba\xbe" and len(head) >= 8:
        (count,) = struct.unpack_from(">I", head, 4)
        if count <= MAX_FAT_BUILDS and len(head) >= 8 + 20 * count:
            return [_mach(struct.unpack_from(">I", head, 8 + 20 * index)[0]) for index in range(count)]
    if head.startswith(b"MZ"):
        return ["windows-x86_64"]
    return []


def _elf_order(head: bytes) -> str:
    return ">" if head[5] == 2 else "<"


def _elf_type(head: bytes) -> int:
    (kind,) = struct.unpack_from(f"{_elf_order(head)}H", head, 16)
    return int(kind)


def _elf_end(head: bytes) -> int:
    """How many bytes the file needs for all that is loaded of it."""
    order = _elf_order(head)
    if head[4] == 2:
        at, (size, count) = struct.unpack_from(f"{order}Q", head, 32)[0], struct.unpack_from(f"{order}HH", head, 54)
        segment, word, offset, length = 56, "Q", 8, 32
    else:
        at, (size, count) = struct.unpack_from(f"{order}I", head, 28)[0], struct.unpack_from(f"{order}HH", head, 42)
        segment, word, offset, length = 32, "I", 4, 16
    end = at + size * count
    for here in range(at, min(end, len(head) - segment + 1), max(size, segment)):
        if struct.unpack_from(f"{order}I", head, here)[0] == _ELF_LOADED:
            begin, bytes_of_it = (struct.unpack_from(f"{order}{word}", head, here + one)[0] for one in (offset, length))
            end = max(end, begin + bytes_of_it)
    return int(end)


def _mach(machine: int) -> str:
    return f"darwin-{_MACH_MACHINES.get(machine, f'machine-{machine}')}"
