"""HTTP in our nursery: hypercorn serves whatever ASGI application it is handed, on loopback."""

from __future__ import annotations

import logging
import socket
from functools import partial
from typing import Any

import trio

from granville.errors import StartupError

log = logging.getLogger(__name__)

HOST = "127.0.0.1"


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
    """Started by: the kernel. Ends when: cancelled. Cancelled by: the kernel's end."""
    import hypercorn
    import hypercorn.trio

    config = hypercorn.Config()
    config.bind = [f"fd://{sock.detach()}"]
    config.errorlog = logging.getLogger("granville.http")
    config.graceful_timeout = 1.0
    config.include_server_header = False
    await hypercorn.trio.serve(app, config, shutdown_trigger=partial(trio.sleep_forever), task_status=task_status)
