"""What a daemon's settings say of its doors."""

from __future__ import annotations

from typing import Protocol


class Bounds(Protocol):
    """Of connections, and of callbacks. granville.config.ServeConfig has them, with their meaning."""

    @property
    def max_connections(self) -> int: ...

    @property
    def max_request_bytes(self) -> int: ...

    @property
    def part_message_s(self) -> float: ...

    @property
    def max_outbox_bytes(self) -> int: ...

    @property
    def write_stall_s(self) -> float: ...

    @property
    def max_senders(self) -> int: ...

    @property
    def callback_stall_s(self) -> float: ...

    @property
    def delivery_ttl_s(self) -> float: ...


class Tally(Protocol):
    """What a daemon counts of its doors, for its status."""

    rejected: int
    """Messages and connections that were refused."""
    connections: int
    """Open now."""
    senders: int
    """Callback connections open now."""
    delivered: int
    """Terminal messages to callbacks; and those given up."""
    undelivered: int
