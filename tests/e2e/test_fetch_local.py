"""`file://`: a copy that is whole and verified, or none."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import trio

from granville.errors import StartupError
from granville.fetch import place
from granville.fetch.sources import FileSource, HttpSource, Mirrors, fetch
from granville.fetch.verify import remembered
from tests.e2e.site import DATA

DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(DATA)
    return path


def _read(path: Path) -> bytes:
    return path.read_bytes()


@pytest.mark.parametrize("sha256", [None, DIGEST])
async def test_a_file_is_copied(origin: Path, tmp_path: Path, sha256: str | None) -> None:
    destination = tmp_path / "store" / "model.gguf"
    seen: list[str] = []
    await fetch(FileSource(str(origin), sha256), destination, lambda name, *_: seen.append(name))
    assert _read(destination) == DATA
    assert set(os.listdir(destination.parent)) == {"model.gguf", ".model.gguf.verified"}
    kept = remembered(destination)
    assert kept is not None
    assert (kept.sha256, kept.source) == (DIGEST, f"file://{origin}")
    assert seen[0] == "copying model.gguf"


@pytest.mark.parametrize(
    ("name", "sha256", "size", "says"),
    [
        ("model.gguf", "0" * 64, None, "expected SHA-256"),
        ("model.gguf", DIGEST, 7, "has 3000008 bytes, 7 were expected"),
        ("none.gguf", None, None, "cannot be read: No such file"),
        ("folder.gguf", None, None, "cannot be read: Is a directory"),
        ("page.gguf", None, None, "not a GGUF model"),
    ],
)
async def test_what_goes_wrong_leaves_nothing(
    origin: Path, tmp_path: Path, name: str, sha256: str | None, size: int | None, says: str
) -> None:
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    with pytest.raises(StartupError, match=says):
        await fetch(FileSource(str(tmp_path / name), sha256, size), tmp_path / "store" / "model.gguf")
    assert not (tmp_path / "store").exists()


async def test_a_copy_needs_room(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "FREE_MARGIN_BYTES", 1 << 60)
    with pytest.raises(StartupError, match="make room"):
        await fetch(FileSource(str(origin)), tmp_path / "store" / "model.gguf")


async def test_a_cancelled_copy_leaves_nothing(origin: Path, tmp_path: Path) -> None:
    with trio.fail_after(30), trio.CancelScope() as scope:
        await fetch(FileSource(str(origin)), tmp_path / "store" / "m.gguf", lambda *_: scope.cancel())
    assert scope.cancelled_caught
    assert os.listdir(tmp_path / "store") == []


async def test_a_file_as_a_mirror(origin: Path, tmp_path: Path) -> None:
    nobody = HttpSource("http://127.0.0.1:1/model.gguf", DIGEST)
    destination = tmp_path / "store" / "model.gguf"
    await fetch(Mirrors((nobody, FileSource(str(origin), DIGEST))), destination)
    assert _read(destination) == DATA
