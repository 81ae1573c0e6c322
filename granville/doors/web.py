"""HTTP in our nursery: hypercorn speaks it on loopback for whatever ASGI application it is handed.

A connection is hypercorn's, the door is ours: left to itself, hypercorn lets one connection's exception end the whole
server, and the kernel with it, and waits without a bound for a client that does not read.
"""

from __future__ import annotations

import logging
import socket
from typing import Any

import trio

from granville.errors import StartupError

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
BACKLOG = 100
MAX_CONNECTIONS = 128
SEND_STALL_S = 5.0
"""A client that takes no answer for so long is gone."""


def http_socket(port: int) -> socket.socket:
    """A socket bound to the loopback port, 0 for a free one. Raises StartupError."""
    sock = socket.socket(socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
    except OSError as error:
        sock.close()
        raise StartupError(
            f"--port {port}: {error.strerror}; choose another, 0 for any free one, or --no-http"
        ) from None
    return sock


async def serve_http(
    app: Any, sock: socket.socket, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    """Started by: the daemon. Ends when: cancelled. Cancelled by: the daemon's end."""
    import hypercorn
    from hypercorn.app_wrappers import ASGIWrapper
    from hypercorn.trio.tcp_server import TCPServer
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.typing import ConnectionState

    config = hypercorn.Config()
    config.errorlog = logging.getLogger("granville.http")
    config.include_server_header = False
    wrapped, context = ASGIWrapper(app), WorkerContext(None)

    room = trio.CapacityLimiter(MAX_CONNECTIONS)

    async def converse(stream: trio.SocketStream) -> None:
        """Started by: an accepted connection. Ends when: the connection does. Cancelled by: the daemon's end."""
        try:
            room.acquire_nowait()
        except trio.WouldBlock:
            log.warning("an HTTP connection was turned away open=%d", MAX_CONNECTIONS)
            return
        bounded: Any = _BoundedStream(stream)  # hypercorn asks for trio's own kinds of stream
        try:
            await TCPServer(wrapped, config, context, ConnectionState({}), bounded).run()
        except* Exception:
            log.warning("an HTTP connection failed", exc_info=True)
        finally:
            room.release()

    sock.listen(BACKLOG)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    await trio.serve_listeners(converse, [listener], task_status=task_status)


class _BoundedStream(trio.abc.HalfCloseableStream):
    """A stream whose sends have an end even where they are shielded from being cancelled."""

    def __init__(self, inner: trio.SocketStream) -> None:
        self._inner = inner
        self.socket = inner.socket

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with trio.move_on_after(SEND_STALL_S) as scope:
            try:
                await self._inner.send_all(data)
            except trio.BusyResourceError:  # the connection is being closed by another of hypercorn's tasks
                raise trio.BrokenResourceError("the connection is being closed") from None
        if scope.cancelled_caught:
            raise trio.BrokenResourceError(f"the client took nothing for {SEND_STALL_S:g} s")

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._inner.aclose()
