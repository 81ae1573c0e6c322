"""A model's identity: the same file gives the same ids after a restart, on any machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

from granville.fetch.trees import files_of, tree_digest
from granville.hosting.fileless import is_fileless

FIRST_BYTES = 1 << 20
BLOCK_BYTES = 4096
BLOCKS = 64


def fingerprint(path: Path) -> str:
    """SHA-256 (hex) over the size as 8 bytes, the first MiB, and 64 blocks of 4 KiB spread over the file.

    It reads 1.25 MiB of a file of any size, so it tells models apart; it does not prove that one is whole. A folder's
    is that of the list of its files', a name's without a file that of the name.
    """
    if path.is_dir():
        return tree_digest({name: fingerprint(file) for name, file in files_of(path).items()})
    if is_fileless(path):
        return hashlib.sha256(path.name.encode()).hexdigest()
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        digest.update(file.read(FIRST_BYTES))
        last = max(0, size - BLOCK_BYTES)
        for block in range(BLOCKS):
            file.seek(last * block // (BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def model_id(architecture: str, fingerprint: str, instance: int = 0) -> str:
    """`llama-a1b2c3`: six hex digits of the fingerprint and the instance's number, for a file loaded twice."""
    digest = hashlib.sha256(f"{fingerprint}:{instance}".encode()).hexdigest()
    return f"{architecture}-{digest[:6]}"
