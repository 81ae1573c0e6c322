"""Is this file what it should be: its SHA-256, and the first bytes of its format.

A multi-gigabyte model takes seconds to hash, so a file that passed is remembered in a small file beside it
(`.NAME.verified`) by size, modification time and inode. Whoever can forge those could as well replace the
file after a check; bytes that rot on the disk are for the file system's own checksums to find.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import struct
from pathlib import Path

import msgspec
import trio

from granville.errors import StartupError

GGUF_MAGIC = b"GGUF"
GGUF_VERSIONS = (2, 3)
READ_BYTES = 1 << 20

log = logging.getLogger(__name__)


class HashMismatch(StartupError):
    """The bytes are not those that were asked for."""


class Verified(msgspec.Struct, frozen=True):
    """What a file was when its hash was last computed."""

    sha256: str
    size: int
    mtime_ns: int
    inode: int


def check_digest(text: str) -> str:
    """A SHA-256 as a person types it, in lower case. Raises StartupError for anything but 64 hex digits."""
    digest = text.strip().lower()
    if re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        raise StartupError(f"a SHA-256 is 64 hexadecimal digits, got {text!r} ({len(digest)} characters)")
    return digest


async def sha256_file(path: Path) -> str:
    """The hex digest of a file of any size, read in a thread that notices cancellation."""
    return await trio.to_thread.run_sync(_sha256, path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
            trio.from_thread.check_cancelled()
    return digest.hexdigest()


async def require_digest(path: Path, sha256: str) -> None:
    """Raises HashMismatch unless the file has this hash. Reads the whole file."""
    actual = await sha256_file(path)
    if actual != sha256:
        raise HashMismatch(f"{path.name}: expected SHA-256 {sha256}, got {actual}")


async def is_verified(path: Path, sha256: str) -> bool:
    """Whether the file has this hash. It is read only when it changed since the last time that it had."""
    if _recall(path) == _describe(path, sha256):
        return True
    try:
        await require_digest(path, sha256)
    except HashMismatch as error:
        log.warning("%s", error)
        return False
    remember(path, sha256)
    return True


def remember(path: Path, sha256: str) -> None:
    """Note that this file has this hash. Where the folder cannot be written to, each start hashes again."""
    sidecar = _sidecar(path)
    temporary = sidecar.with_name(f"{sidecar.name}.{os.getpid()}")
    try:
        temporary.write_bytes(msgspec.json.encode(_describe(path, sha256)))
        os.replace(temporary, sidecar)
    except OSError as error:
        log.info("the hash of %s is not remembered: %s", path.name, error)


def _sidecar(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified")


def _describe(path: Path, sha256: str) -> Verified:
    stat = path.stat()
    return Verified(sha256, stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _recall(path: Path) -> Verified | None:
    try:
        return msgspec.json.decode(_sidecar(path).read_bytes(), type=Verified)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def check_gguf(path: Path) -> None:
    """Raises StartupError unless the file begins like a GGUF that llama.cpp reads.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (magic, then the version as uint32).
    """
    with path.open("rb") as file:
        head = file.read(8)
    if len(head) < 8 or head[:4] != GGUF_MAGIC:
        kind = "an empty file" if not head else f"begins with {head[:4]!r}, a GGUF model begins with {GGUF_MAGIC!r}"
        raise StartupError(f"{path.name}: not a GGUF model ({kind})")
    (version,) = struct.unpack("<I", head[4:])
    if version in GGUF_VERSIONS:
        return
    if struct.unpack(">I", head[4:])[0] in GGUF_VERSIONS:
        raise StartupError(f"{path.name}: a big-endian GGUF; convert it to little-endian first")
    raise StartupError(f"{path.name}: GGUF version {version}; this Granville reads versions 2 and 3")
