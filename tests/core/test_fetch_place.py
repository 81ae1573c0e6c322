"""Hashes are right, remembered and forgotten; one writer at a time; a place is taken by whole files alone."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from granville.errors import StartupError
from granville.fetch import verify
from granville.fetch.place import put_in_place, require_space, sole_writer
from granville.fetch.progress import Progress
from granville.fetch.verify import HashMismatch, check_gguf, is_verified, require_digest, sha256_file

GGUF = b"GGUF\x03\0\0\0" + bytes(range(256)) * 9000


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_the_hash_of_a_file_longer_than_one_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(GGUF)
    assert await sha256_file(path) == digest(GGUF)
    with pytest.raises(HashMismatch, match="0000"):
        await require_digest(path, "0" * 64)


async def test_a_verified_file_is_not_read_again_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []

    async def counted(path: Path, progress: Progress) -> str:
        reads.append(path)
        return await sha256_file(path)

    monkeypatch.setattr(verify, "sha256_file", counted)
    path = tmp_path / "file"
    path.write_bytes(GGUF)
    assert await is_verified(path, digest(GGUF))
    assert await is_verified(path, digest(GGUF))
    assert len(reads) == 1
    assert not await is_verified(path, "0" * 64)

    before = path.stat()
    path.write_bytes(GGUF[:-1] + b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert not await is_verified(path, digest(GGUF))


async def test_a_spoilt_memory_of_the_hash_costs_one_reading(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(GGUF)
    (tmp_path / ".file.verified").write_bytes(b'{"sha256": 3}')
    assert await is_verified(path, digest(GGUF))


async def test_a_whole_part_becomes_the_file_and_is_remembered(tmp_path: Path) -> None:
    part, destination = tmp_path / "m.gguf.part", tmp_path / "m.gguf"
    part.write_bytes(GGUF)
    destination.write_bytes(b"damaged")
    await put_in_place(part, destination, digest(GGUF))
    assert destination.read_bytes() == GGUF
    assert set(os.listdir(tmp_path)) == {"m.gguf", ".m.gguf.verified"}


@pytest.mark.parametrize(
    ("data", "sha256", "says"),
    [
        (GGUF, "0" * 64, "expected SHA-256"),
        (b"<html>not found</html>", None, "not a GGUF model"),
        (b"", None, "an empty file"),
        (b"GGUF\x63\0\0\0", None, "version 99"),
        (b"GGUF\0\0\0\x03", None, "big-endian"),
    ],
)
async def test_a_wrong_part_never_gets_there(tmp_path: Path, data: bytes, sha256: str | None, says: str) -> None:
    part, destination = tmp_path / "m.gguf.part", tmp_path / "m.gguf"
    part.write_bytes(data)
    with pytest.raises(StartupError, match=says):
        await put_in_place(part, destination, sha256)
    assert not destination.exists()


def test_only_gguf_versions_that_llama_cpp_reads(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for version in (2, 3):
        path.write_bytes(b"GGUF" + version.to_bytes(4, "little"))
        check_gguf(path)
    path.write_bytes(b"GGUF" + (1).to_bytes(4, "little"))
    with pytest.raises(StartupError, match="version 1"):
        check_gguf(path)


async def test_one_writer_at_a_time(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    destination = tmp_path / "folder" / "file"
    inside = most = 0

    async def write() -> None:
        nonlocal inside, most
        async with sole_writer(destination):
            inside += 1
            most = max(most, inside)
            await trio.sleep(1)
            inside -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(write)
    assert most == 1
    assert list(destination.parent.iterdir()) == []


async def test_a_cancelled_wait_for_the_lock_leaves_it_to_its_owner(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    destination = tmp_path / "file"
    async with sole_writer(destination):
        with trio.move_on_after(3) as scope:
            async with sole_writer(destination):
                pytest.fail("two writers")
        assert scope.cancelled_caught
    with trio.fail_after(1):
        async with sole_writer(destination):
            pass


def test_a_full_disk_is_seen_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_space(tmp_path, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100 << 20))
    require_space(tmp_path, 30 << 20)
    with pytest.raises(StartupError, match="42 MB are needed and 105 MB are free"):
        require_space(tmp_path, 42_000_000)
