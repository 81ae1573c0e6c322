"""A recording that a request names by its path: looked at before the request is accepted, and not read."""

from __future__ import annotations

import os
import stat

from granville.errors import BadRequest

MAX_FILE_BYTES = 2 << 30


def recording_bytes(path: str, uid: int) -> int:
    """The size of a file that the user `uid` may have transcribed: a regular one of their own that the daemon can
    read. Nothing else is opened: a FIFO would wait for its writer, and a device may do anything. Raises BadRequest."""
    if not os.path.isabs(path):
        raise BadRequest(f"audio_path: {path!r} is not absolute; the daemon has another working folder than you")
    try:
        _check(os.lstat(path), path, uid)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            return _check(os.fstat(fd), path, uid)  # it may be another by now
        finally:
            os.close(fd)
    except OSError as error:
        raise BadRequest(f"audio_path: {path!r} cannot be read: {error.strerror}") from None
    except ValueError:
        raise BadRequest("audio_path: a path has no NUL in it") from None


def _check(status: os.stat_result, path: str, uid: int) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise BadRequest(f"audio_path: {path!r} is not a regular file; give the file itself, no link to it")
    if status.st_uid != uid:
        raise BadRequest(f"audio_path: {path!r} is another user's; give a file of your own, or its bytes in `audio`")
    if not status.st_size:
        raise BadRequest(f"audio_path: {path!r} is empty")
    if status.st_size > MAX_FILE_BYTES:
        raise BadRequest(f"audio_path: {path!r} has {status.st_size} bytes, and {MAX_FILE_BYTES} are the most")
    return status.st_size
