"""Where a daemon is: the path of a Unix socket, or `tcp://host:port`."""

from __future__ import annotations

import errno
import uuid

import trio

from granville.errors import BadRequest, ConnectionLost, NoDaemon

DEFAULT_ADDRESS = "/tmp/granville.sock"
"""Where a daemon listens unless told otherwise (`granville.config.DEFAULT_SOCKET`)."""


def new_id() -> str:
    """An id for a request: 32 hex digits, random."""
    return uuid.uuid4().hex


def is_tcp(address: str) -> bool:
    return address.startswith("tcp://")


async def dial(
    address: str, start_with: str = "granville serve smollm2", usual: str = DEFAULT_ADDRESS
) -> trio.SocketStream:
    """A stream to the daemon. Raises NoDaemon when nothing listens there, which says how to start it; BadRequest for
    no address."""
    if not address or ("://" in address and not is_tcp(address)):
        raise BadRequest(f"{address!r} is no address of a daemon; expected a socket's path, or tcp://host:port")
    try:
        if is_tcp(address):
            stream = await trio.open_tcp_stream(*_host_and_port(address))
        else:
            stream = await trio.open_unix_socket(address)
    except OSError as error:
        raise NoDaemon(_explain(address, error, start_with, usual)) from error
    try:
        stream.socket.getpeername()
    except OSError as error:
        # Trio's connect to a Unix listener whose backlog is full returns a stream that is not connected.
        await trio.aclose_forcefully(stream)
        if error.errno == errno.ENOTCONN:
            raise ConnectionLost(f"{address}: too many programs are connecting at once; try again") from error
        raise
    return stream


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.removeprefix("tcp://").rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise BadRequest(f"{address}: expected tcp://host:port")
    return host.strip("[]"), int(port)


def _explain(address: str, error: OSError, start_with: str, usual: str) -> str:
    if error.errno == errno.EACCES:
        return f"{address}: permission denied; the daemon there belongs to another user"
    if error.errno is None and not is_tcp(address):
        return f"{address}: {error}"  # a path that is too long: the system was not even asked
    if is_tcp(address):
        where = f" --tcp {address.removeprefix('tcp://')}"
    else:
        where = "" if address == usual else f" -s {address}"
    return f"no daemon is listening on {address}; start one with `{start_with}{where}`"
