"""Listening sockets: a Unix socket that only one daemon can hold, and loopback TCP when asked for."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from granville.errors import StartupError

log = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections that the operating system keeps waiting to be accepted; it may allow fewer (net.core.somaxconn)."""


@contextmanager
def unix_listener(path: str) -> Iterator[trio.SocketListener]:
    """Hold `path`: mode 0600 from its first moment, a stale socket replaced, a live one never. Gone at the end.

    Raises StartupError.
    """
    with sole_owner(path, "--socket"):
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX)
        old_umask = os.umask(0o177)
        try:
            sock.bind(path)
        except OSError as error:
            sock.close()
            raise StartupError(f"--socket {path}: {error.strerror}") from None
        finally:
            os.umask(old_umask)
        ours = os.stat(path)
        try:
            sock.listen(BACKLOG)
            yield trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        finally:
            sock.close()
            _remove(path, ours)


def tcp_listener(host: str, port: int) -> trio.SocketListener:
    """Listen on a loopback address. Raises StartupError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise StartupError(f"--tcp {host}:{port}: {error.strerror}") from None
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


@contextmanager
def sole_owner(path: str, flag: str) -> Iterator[None]:
    """Hold the lock file beside a path, which two daemons starting at once cannot both do. Raises StartupError, which
    begins with the flag that named it."""
    lock_path = f"{path}.lock"
    while True:
        try:
            fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise StartupError(f"{flag} {path}: the folder {os.path.dirname(path)} does not exist") from None
        except OSError as error:
            raise StartupError(f"{flag} {path}: cannot open the lock file {lock_path}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = os.stat(lock_path).st_ino == os.fstat(fd).st_ino
        except BlockingIOError:
            os.close(fd)
            raise StartupError(f"{flag} {path}: another daemon is serving there; stop it or choose another") from None
        except FileNotFoundError:
            current = False
        if current:
            break
        os.close(fd)  # a daemon that was just ending has removed this file: take the new one
    try:
        yield
    finally:
        _remove(lock_path, os.fstat(fd))
        os.close(fd)


def _remove(path: str, ours: os.stat_result) -> None:
    """Remove our own file. What cleans up a folder of temporary files may have done so, and another daemon may be
    there by now."""
    try:
        if os.path.samestat(ours, os.stat(path, follow_symlinks=False)):
            os.unlink(path)
    except FileNotFoundError:
        log.warning("file was removed by somebody else path=%s", path)


def _remove_stale(path: str) -> None:
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartupError(f"--socket {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise StartupError(f"--socket {path}: a file that is not a socket is in the way; move it or choose another")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise StartupError(f"--socket {path}: {error.strerror or error}") from None
        else:
            raise StartupError(f"--socket {path}: another program is listening there; choose another")
    try:
        os.unlink(path)
    except OSError as error:
        raise StartupError(f"--socket {path}: cannot remove the stale socket: {error.strerror}") from None
