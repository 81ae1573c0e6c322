"""Removing a model from the store: everything that belongs to it, unless somebody still needs it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from granville.errors import StartupError
from granville.fetch.parts import drop, wheel_folder
from granville.fetch.place import at_once, part_of, remove_if_empty, sync
from granville.fetch.trees import files_of, tree_bytes
from granville.fetch.verify import sidecar_of
from granville.models.tuned import tuned_path, tuning_path


def belongings(path: Path) -> list[Path]:
    """What lies beside a model because of it and is there, in the order in which it goes; the model is the last."""
    beside = (tuned_path(path), tuning_path(path), sidecar_of(tuned_path(path)), sidecar_of(path), path)
    return [one for one in beside if os.path.lexists(one)]


def require_in_store(path: Path, folder: Path) -> None:
    """Raises StartupError for a file that is not below the store's folder: what a person put elsewhere is his."""
    inside = path.parent.resolve().is_relative_to(folder.resolve()) if folder.is_dir() else False
    if not inside:
        raise StartupError(f"{path} is not in {folder}: only models there are removed; delete it yourself")


def users_of(path: Path) -> list[int]:
    """The processes of this user that have the model, or its tuned form, mapped into their memory; on Linux alone.
    llama.cpp maps its weights unless it is told not to, so this finds daemons at any socket, and other programs."""
    own = list(files_of(path).values()) if path.is_dir() else [path]
    names = {str(one.resolve()) for one in (*own, tuned_path(path)) if one.exists()}
    found = []
    try:
        processes = [name for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:  # no /proc here
        return []
    for process in processes:
        try:
            maps = Path("/proc", process, "maps").read_text(errors="replace")
        except OSError:  # it has just ended, or is another user's
            continue
        # `address perms offset dev inode path`: https://man7.org/linux/man-pages/man5/proc_pid_maps.5.html
        if any(len(parts) == 6 and parts[5] in names for line in maps.splitlines() if (parts := line.split(None, 5))):
            found.append(int(process))
    return found


def remove(path: Path, folder: Path) -> int:
    """Remove a model of the store `folder` and what belongs to it; how many bytes that was. Folders that are empty then
    go as well. Raises StartupError when it is being fetched or tuned, or cannot be removed."""
    require_in_store(path, folder)
    with at_once(path) as ours:
        if not ours:
            raise StartupError(f"{path.name} is being written by another process; try again when that has ended")
        freed = 0
        try:
            for one in belongings(path):
                if one.is_dir() and not one.is_symlink():
                    freed += tree_bytes(one)
                    _remove_folder(one)
                    continue
                freed += one.lstat().st_size
                one.unlink()
            drop(part_of(path))
            sync(path.parent)
        except OSError as error:
            raise StartupError(f"{error.filename or path}: cannot be removed: {error.strerror}") from error
    remove_empty(path.parent, folder)
    return freed


def _remove_folder(path: Path) -> None:
    """First out of its name, so that no half of it is ever taken for a model: `granville models remove --unfinished`
    finds what a crash leaves."""
    going = wheel_folder(path)
    shutil.rmtree(going, ignore_errors=True)
    os.rename(path, going)
    sync(path.parent)
    shutil.rmtree(going)


def remove_empty(folder: Path, top: Path) -> None:
    """Remove empty folders from `folder` upwards, up to `top`, which stays."""
    while folder != top and folder.is_relative_to(top):
        if not remove_if_empty(folder):
            return
        folder = folder.parent
