"""Where a callback may be: a Unix socket, loopback TCP, or loopback HTTP. Nothing else is ever connected to."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from granville.config import DEFAULT_TCP_PORT, MAX_SOCKET_PATH_BYTES
from granville.errors import BadRequest

Scheme = Literal["unix", "tcp", "http"]


@dataclass(frozen=True, slots=True)
class Address:
    scheme: Scheme
    where: str
    """The path, the IP address, or the whole URL."""
    port: int = 0

    def __str__(self) -> str:
        return f"tcp://{self.where}:{self.port}" if self.scheme == "tcp" else self.where


def parse_callback(callback: str, *, over_tcp: bool = False) -> Address:
    """A request's `callback`. Raises BadRequest; a client that came over TCP may name `tcp://` only."""
    if over_tcp and not callback.startswith("tcp://"):
        raise BadRequest("callback: over TCP it must be null or tcp://127.0.0.1:port")
    if callback.startswith("tcp://"):
        host, port = _loopback(callback)
        if not port:
            raise BadRequest(f"callback: {callback!r} has no port; write tcp://127.0.0.1:port")
        return Address("tcp", host, port)
    if callback.startswith("http://"):
        if not callback.isprintable():
            raise BadRequest("callback: a URL has no control characters; write them as %XX")
        _loopback(callback)
        return Address("http", callback)
    if not callback.startswith("/"):
        raise BadRequest("callback: must be an absolute socket path, tcp://host:port, http://…, or null")
    if "\0" in callback or len(os.fsencode(callback)) > MAX_SOCKET_PATH_BYTES:
        raise BadRequest(f"callback: a socket path has at most {MAX_SOCKET_PATH_BYTES} bytes and no NUL")
    return Address("unix", callback)


def parse_tcp_bind(value: str, default_port: int = DEFAULT_TCP_PORT) -> tuple[str, int]:
    """`--tcp host:port` as a loopback address; without a port the usual one. Raises BadRequest."""
    host, port = _loopback(f"tcp://{value}", "--tcp")
    return host, default_port if port is None else port


def _loopback(url: str, field: str = "callback") -> tuple[str, int | None]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise BadRequest(f"{field}: {url!r}: {error}") from None
    literal = "127.0.0.1" if host == "localhost" else host
    try:
        loopback = ipaddress.ip_address(literal).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise BadRequest(f"{field}: {host!r} is not a loopback address; use 127.0.0.1, ::1 or localhost")
    return literal, port
