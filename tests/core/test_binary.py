"""What a library is built for, told from its first bytes, whatever these are."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.errors import StartupError
from granville.hosting.binary import check_library, library_platforms


def elf(machine: int, *, order: str = "<", kind: int = 3) -> bytes:
    """A header of 64 bytes (System V gABI), without segments."""
    ident = b"\x7fELF" + bytes([2, 1 if order == "<" else 2, 1]) + bytes(9)
    return ident + struct.pack(f"{order}HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, 0, 0, 0, 0)


def mach(machine: int) -> bytes:
    return struct.pack("<II", 0xFEEDFACF, machine) + bytes(24)


@pytest.mark.parametrize(
    ("head", "platforms"),
    [
        (elf(62), ["linux-x86_64"]),
        (elf(183), ["linux-aarch64"]),
        (elf(22, order=">"), ["linux-s390x"]),
        (elf(9999), ["linux-machine-9999"]),
        (mach(0x0100000C), ["darwin-arm64"]),
        (mach(0x01000007), ["darwin-x86_64"]),
        (
            struct.pack(">II5I5I", 0xCAFEBABE, 2, 0x01000007, 0, 0, 0, 0, 0x0100000C, 0, 0, 0, 0),
            ["darwin-x86_64", "darwin-arm64"],
        ),
        (b"\xca\xfe\xba\xbe\x00\x00\x00\x41" + bytes(2000), []),
        (b"#!/bin/sh\n", []),
        (b"", []),
    ],
)
def test_the_platforms_of_a_library(head: bytes, platforms: list[str]) -> None:
    assert library_platforms(head) == platforms


@given(
    st.sampled_from([b"", b"\x7fELF", b"\x7fELF\x02\x01", b"\xca\xfe\xba\xbe", b"\xcf\xfa\xed\xfe", b"MZ"]), st.binary()
)
def test_no_bytes_are_too_strange(start: bytes, rest: bytes) -> None:
    library_platforms(start + rest)


@given(st.binary(min_size=64, max_size=600), st.sampled_from([1, 2]))
def test_no_header_is_too_strange(tmp_path_factory: pytest.TempPathFactory, data: bytes, bits: int) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "strange.so"
    path.write_bytes(elf(62)[:4] + bytes([bits]) + elf(62)[5:20] + data)
    with suppress(StartupError):
        check_library(path)
