"""Who is at the other end of a connection, and whether they still are."""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
from dataclasses import dataclass
from functools import cached_property

import trio

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Peer:
    """Who is at the other end."""

    sock: trio.socket.SocketType | None
    """None in tests with memory streams."""

    @property
    def is_tcp(self) -> bool:
        return self.sock is not None and self.sock.family != socket.AF_UNIX

    @cached_property
    def uid(self) -> int:
        """Of the user at the other end of a Unix socket. Where the system does not tell, it is our own: nobody else can
        open the socket."""
        credentials = self._credentials
        return os.getuid() if credentials is None else credentials[1]

    @property
    def _credentials(self) -> tuple[int, int] | None:
        """(process, user); None where the system does not tell."""
        if self.sock is None or self.is_tcp or not hasattr(socket, "SO_PEERCRED"):
            return None
        pid, uid, _ = struct.unpack("3i", self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, uid

    @cached_property
    def key(self) -> tuple[str, str]:
        """(user, program), as far as the kernel tells."""
        credentials = self._credentials
        if credentials is None:
            return "tcp" if self.is_tcp else "local", "unknown"
        pid, uid = credentials
        try:
            program = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            program = "unknown"
        return str(uid), program

    async def hung_up(self, *, at_end_of_file: bool) -> None:
        """Wait until the client has gone altogether. One that has only shut down its sending side still reads, on a
        Unix socket; on TCP the two look alike, and end of file is gone."""
        if self.sock is None or self.is_tcp or not hasattr(select, "epoll"):
            if at_end_of_file:
                return
            await trio.sleep_forever()
        try:
            watch = select.epoll()
        except OSError as error:  # no open file is left: the first write to a client that has gone will tell
            log.warning("cannot watch for a hang-up error=%s", error.strerror)
            await trio.sleep_forever()
        with watch:
            watch.register(self.sock, 0)  # no event asked for: EPOLLHUP always comes
            await trio.lowlevel.wait_readable(watch.fileno())
