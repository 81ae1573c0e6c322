"""Saved KV states as files: one a state, mode 0600, replaced whole, and believed only after its digest was checked.

A file is MAGIC, the length of the header (4 bytes, little endian), the header as JSON, the tokens as 32-bit integers,
the state as the backend gave it, and a BLAKE2b digest of all that.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MAGIC = b"GRVLKV01"
DIGEST_BYTES = 32
MAX_HEADER_BYTES = 4096
MAX_SIZE = 1 << 60
SUFFIX = ".kv"
FIELDS = {"key": (str,), "tokens": (int,), "pure": (int,), "session": (str, type(None)), "size": (int,)}


class KvFileError(Exception):
    """A file that is not what it should be; the message says how."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a file's state is of."""

    tokens: list[int]
    pure: int
    """How many of the tokens, from the first, were read as a prompt; the state of others depends on how they were
    generated."""
    session: str | None

    @property
    def key(self) -> str | bytes:
        """A session has one state, and so has a run of tokens that is no session's."""
        if self.session is not None:
            return self.session
        return hashlib.blake2b(array("i", self.tokens).tobytes(), digest_size=16).digest()


class KvFiles:
    """The files of one model in one folder. `key` names all that a state depends on beside its tokens: a state made
    under another key is left alone. Only one process at a time has a folder."""

    def __init__(self, folder: Path, key: str) -> None:
        """Makes the folder. Raises OSError when that fails, BlockingIOError when another process has it."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._key = key
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise

    def name(self, label: Label) -> str:
        """A session has one file, whose states follow each other; another prefix is named by its tokens."""
        what = label.key
        kind, what = ("prefix", what) if isinstance(what, bytes) else ("session", what.encode(errors="surrogatepass"))
        return f"{kind}-{hashlib.blake2b(self._key.encode() + b'|' + what, digest_size=16).hexdigest()}{SUFFIX}"

    def scan(self) -> Iterator[tuple[str, int, float, Label | None]]:
        """(name, bytes, modified at, label) of every file; no label for one of another key. What is no whole file is
        removed."""
        for path in sorted(self._folder.iterdir()):
            if path.suffix == ".part":
                self.remove(path.name)
            if path.suffix != SUFFIX:
                continue
            try:
                stat = path.stat()
                with path.open("rb") as file:
                    head = file.read(12)
                    header, tokens_at = _header(head, file.read(MAX_HEADER_BYTES))
                    if header["size"] != stat.st_size:
                        raise KvFileError(f"it has {stat.st_size} bytes and was written with {header['size']}")
                    label = None
                    if header["key"] == self._key:
                        file.seek(tokens_at)
                        label = _label(header, file.read(4 * header["tokens"]))
                yield path.name, stat.st_size, stat.st_mtime, label
            except (OSError, KvFileError) as error:
                log.warning("kv file ignored and removed file=%s reason=%s", path.name, error)
                self.remove(path.name)

    def write(self, label: Label, state: bytes | memoryview) -> int:
        """Store a state, in the place of what has its name. Its bytes on disk. Raises OSError, with nothing changed."""
        name = self.name(label)
        tokens = array("i", label.tokens).tobytes()
        fields = {"key": self._key, "tokens": len(label.tokens), "pure": label.pure, "session": label.session}
        header_bytes = len(json.dumps(fields | {"size": MAX_SIZE}))  # as its own size is in it, with room for that
        size = len(MAGIC) + 4 + header_bytes + len(tokens) + len(state) + DIGEST_BYTES
        header = json.dumps(fields | {"size": size}).encode().ljust(header_bytes)
        head = MAGIC + struct.pack("<I", header_bytes) + header + tokens
        digest = hashlib.blake2b(head, digest_size=DIGEST_BYTES)
        digest.update(state)
        part = self._folder / f"{name}.part"
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                for piece in (head, state, digest.digest()):
                    file.write(piece)
            part.replace(self._folder / name)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return size

    def read(self, label: Label) -> memoryview:
        """The state of just what the label says, writable. Raises KvFileError or OSError; a file that is wrong is
        removed."""
        name = self.name(label)
        with (self._folder / name).open("rb", buffering=0) as file:
            data = memoryview(bytearray(os.fstat(file.fileno()).st_size))
            got = 0
            while (count := file.readinto(data[got:])) > 0:
                got += count
        try:
            if got < 12 + DIGEST_BYTES:
                raise KvFileError("it is too short")
            body = data[:-DIGEST_BYTES]
            if hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() != data[-DIGEST_BYTES:]:
                raise KvFileError("its digest does not fit")
            header, tokens_at = _header(bytes(body[:12]), bytes(body[12 : 12 + MAX_HEADER_BYTES]))
            state_at = tokens_at + 4 * header["tokens"]
            found = _label(header, bytes(body[tokens_at:state_at]))
        except KvFileError:
            self.remove(name)
            raise
        if header["key"] != self._key or found != label:
            raise KvFileError("it is of other tokens by now")
        return body[state_at:]

    def remove(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            log.warning("kv file not removed file=%s error=%s", name, error.strerror)

    def close(self) -> None:
        """Let another process have the folder."""
        os.close(self._lock)


def _header(head: bytes, rest: bytes) -> tuple[dict[str, Any], int]:
    """The header, and where the tokens begin."""
    if head[:8] != MAGIC or len(head) < 12:
        raise KvFileError("it does not begin as a KV file does")
    (length,) = struct.unpack("<I", head[8:12])
    if length > min(len(rest), MAX_HEADER_BYTES):
        raise KvFileError("its header is too long")
    try:
        header = json.loads(rest[:length])
    except (ValueError, RecursionError):
        raise KvFileError("its header is not JSON") from None
    fits = isinstance(header, dict) and all(type(header.get(name)) in types for name, types in FIELDS.items())
    if not fits or not 0 <= header["pure"] <= header["tokens"] <= header["size"] // 4:
        raise KvFileError("its header has not all that it needs")
    return header, 12 + length


def _label(header: dict[str, Any], tokens: bytes) -> Label:
    ids = array("i")
    if len(tokens) != 4 * header["tokens"]:
        raise KvFileError("it ends before its tokens do")
    ids.frombytes(tokens)
    return Label(ids.tolist(), header["pure"], header["session"])
