"""Is this file what it should be: its SHA-256, and the first bytes of its format.

A multi-gigabyte model takes seconds to hash, so a file that passed is remembered in a small file beside it
(`.NAME.verified`) by size, modification time and inode, with where it came from. Whoever can forge those could as well
replace the file after a check; bytes that rot on the disk are found by `granville models verify`, which reads them.
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
from granville.fetch.progress import Progress, silent
from granville.fetch.trees import files_of, stamp, tree_digest

GGUF_MAGIC = b"GGUF"
GGUF_VERSIONS = (2, 3)
READ_BYTES = 1 << 20
PROGRESS_BYTES = 32 << 20

log = logging.getLogger(__name__)


class HashMismatch(StartupError):
    """The bytes are not those that were asked for."""


class Verified(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a file was when its hash was last computed."""

    sha256: str
    size: int
    mtime_ns: int
    inode: int
    source: str | None = None
    """Where it came from, for a person; None: not known."""


def check_digest(text: str) -> str:
    """A SHA-256 as a person types it, in lower case. Raises StartupError for anything but 64 hex digits."""
    digest = text.strip().lower()
    if re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        raise StartupError(f"a SHA-256 is 64 hexadecimal digits, got {text!r} ({len(digest)} characters)")
    return digest


async def sha256_file(path: Path, progress: Progress = silent) -> str:
    """The hex digest of a file of any size, or of a folder (`trees`), read in a thread that notices cancellation."""
    if _is_folder(path):
        return tree_digest({name: await sha256_file(file, progress) for name, file in files_of(path).items()})
    return await trio.to_thread.run_sync(_digest, path, "sha256", b"", progress)


async def git_blob_sha1(path: Path) -> str:
    """Git's name of the file's content (hex): SHA-1 over `blob SIZE`, a NUL, and the bytes
    (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    return await trio.to_thread.run_sync(_digest, path, "sha1", b"blob %d\0", silent)


def _digest(path: Path, algorithm: str, prefix: bytes, progress: Progress) -> str:
    total, done, shown = path.stat().st_size, 0, 0
    digest = hashlib.new(algorithm, prefix % total if prefix else b"", usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
            done += len(block)
            trio.from_thread.check_cancelled()
            if done - shown >= PROGRESS_BYTES or done == total:
                trio.from_thread.run_sync(progress, f"verifying {path.name.removesuffix('.part')}", done, total)
                shown = done
    return digest.hexdigest()


async def require_digest(path: Path, sha256: str, progress: Progress = silent) -> None:
    """Raises HashMismatch unless the file has this hash. Reads the whole file."""
    actual = await sha256_file(path, progress)
    if actual != sha256:
        raise HashMismatch(f"{path.name}: expected SHA-256 {sha256}, got {actual}")


async def is_verified(path: Path, sha256: str) -> bool:
    """Whether the file has this hash. It is read only when it changed since the last time that it had."""
    known = known_as(path)
    if known is not None and known.sha256 == sha256:
        return True
    try:
        await require_digest(path, sha256)
    except HashMismatch as error:
        log.warning("%s", error)
        return False
    remember(path, sha256)
    return True


def remember(path: Path, sha256: str, source: str | None = None, *, measured: Path | None = None) -> None:
    """Note that this file has this hash. Where the folder cannot be written to, each start hashes again.

    `measured` is the file under another name, from which it is about to be renamed. A `source` that was known stays.
    """
    old = remembered(path)
    if source is None and old is not None and old.sha256 == sha256:
        source = old.source
    size, mtime_ns, inode = stamp(measured or path)
    _write(path, Verified(sha256, size, mtime_ns, inode, source))


def forget(path: Path) -> None:
    """The file no longer has the hash that is remembered of it: it is kept as what the file should be."""
    old = remembered(path)
    if old is not None:
        _write(path, Verified(old.sha256, 0, 0, 0, old.source))


def remembered(path: Path) -> Verified | None:
    """What the file was when it was last verified, whatever it is now."""
    try:
        return msgspec.json.decode(sidecar_of(path).read_bytes(), type=Verified)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def known_as(path: Path) -> Verified | None:
    """What is remembered of the file, when it is there and has not changed since."""
    found = remembered(path)
    try:
        now = stamp(path)
    except FileNotFoundError:
        return None
    return found if found is not None and (found.size, found.mtime_ns, found.inode) == now else None


def _is_folder(path: Path) -> bool:
    return path.is_dir()


def sidecar_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified")


def _write(path: Path, verified: Verified) -> None:
    sidecar = sidecar_of(path)
    temporary = sidecar.with_name(f"{sidecar.name}.{os.getpid()}")
    try:
        temporary.write_bytes(msgspec.json.encode(verified))
        os.replace(temporary, sidecar)
    except OSError as error:
        log.info("the hash of %s is not remembered: %s", path.name, error)


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
