"""Who executes a run: a file a run, locked for as long as its process lives. A lock cannot outlive its owner."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from granville.errors import Conflict

LOOK_TRIES = 20
"""Someone who only looks holds a lock for an instant."""


class RunLocks:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, run_id: str) -> int:
        """The lock of a run, as an open file. Raises Conflict, which says whose it is."""
        path = self._path(run_id)
        for _ in range(LOOK_TRIES):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = _read(file)
                os.close(file)
                if pid is None or not _is_alive(pid):
                    continue
                raise Conflict(f"{run_id}: process {pid} executes this run; cancel it there, or wait") from None
            if self._is_current(file, path):
                os.truncate(file, 0)
                os.pwrite(file, str(os.getpid()).encode(), 0)
                return file
            os.close(file)
        raise Conflict(f"{run_id}: another process takes up this run just now")

    def release(self, run_id: str, file: int) -> None:
        self._path(run_id).unlink(missing_ok=True)
        os.close(file)

    def owner(self, run_id: str) -> int | None:
        """The process that executes a run."""
        try:
            file = os.open(self._path(run_id), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(file)
        finally:
            os.close(file)
        return None

    def _path(self, run_id: str) -> Path:
        return self.folder / f"{run_id}.lock"

    def _is_current(self, file: int, path: Path) -> bool:
        """Whether the file is still the one at the path: its last owner unlinks it before it lets go."""
        try:
            return os.path.samestat(os.fstat(file), path.stat())
        except FileNotFoundError:
            return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(file: int) -> int | None:
    text = os.pread(file, 16, 0)
    return int(text) if text.isdigit() else None
