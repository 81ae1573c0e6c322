"""What `crucible serve` was asked to do, and every bound."""

from __future__ import annotations

from dataclasses import dataclass

from granville.config import (
    DEFAULT_CRUCIBLE_HTTP_PORT,
    DEFAULT_CRUCIBLE_SOCKET,
    DEFAULT_SOCKET,
    at_least,
    check_grace,
    check_port,
    check_socket,
    more_than_nothing,
)


@dataclass(frozen=True, kw_only=True)
class CrucibleConfig:
    """Times in seconds unless the name says otherwise. Those of doors mean what they mean in ServeConfig."""

    socket: str = DEFAULT_CRUCIBLE_SOCKET
    http_port: int = DEFAULT_CRUCIBLE_HTTP_PORT
    """0 picks a free port."""
    tcp: tuple[str, int] | None = None
    granville: str = DEFAULT_SOCKET
    """Where the models are."""
    wait_for_granville_s: float = 60.0
    """How long a step waits for a Granville that is away."""
    max_runs: int = 100
    """That go on at once; the next one is refused with 429."""
    grace_s: float = 30.0
    """How long runs may go on after SIGTERM; then they are left to be resumed."""
    allow: tuple[str, ...] = ()
    """Tools that need it and may be called."""
    tools: tuple[str, ...] | None = None
    """The names of those that there are; None: not known before a run."""
    max_connections: int = 256
    max_request_bytes: int = 64 << 20
    """Of a message, or of a body: sound comes in one piece."""
    max_bodies: int = 8
    """Bodies that are read at once over HTTP."""
    part_message_s: float = 30.0
    max_outbox_bytes: int = 4 << 20
    write_stall_s: float = 60.0
    max_senders: int = 64
    callback_stall_s: float = 10.0
    delivery_ttl_s: float = 60.0

    @property
    def open_files(self) -> int:
        """Room for every connection and sender, a lock a run, and for what the daemon has open itself."""
        return self.max_connections + 2 * self.max_senders + 2 * self.max_runs + 256

    def __post_init__(self) -> None:
        check_socket(self.socket, DEFAULT_CRUCIBLE_SOCKET)
        check_port(self.http_port)
        check_grace(self.grace_s)
        at_least("--max-runs", self.max_runs, 1)
        at_least("--max-connections", self.max_connections, 1)
        at_least("--max-request-bytes", self.max_request_bytes, 1024)
        more_than_nothing("--delivery-ttl", self.delivery_ttl_s)
        more_than_nothing("--wait-for-granville", self.wait_for_granville_s)
