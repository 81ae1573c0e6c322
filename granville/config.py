"""What `granville serve` was asked to do, checked once. Flags win over environment, environment over defaults
(`cli/serve.py` merges them); every bound of the daemon is here under its own name and unit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from granville.errors import StartupError

DEFAULT_SOCKET = "/tmp/granville.sock"
DEFAULT_HTTP_PORT = 8080
DEFAULT_TCP_PORT = 9000
DEFAULT_CRUCIBLE_SOCKET = "/tmp/crucible.sock"
DEFAULT_CRUCIBLE_HTTP_PORT = 8081
DEFAULT_CRUCIBLE_TCP_PORT = 9001
DEFAULT_MODEL = "smollm2"
DEFAULT_DRIVER = "granville-llama"
DEFAULT_SLOTS = 8
"""Sequences that a model runs at once."""
Strategy = Literal["least-busy", "round-robin"]
MAX_SOCKET_PATH_BYTES = 107
"""`sun_path` is 108 bytes on Linux, its closing NUL included (unix(7))."""


def home() -> Path:
    """Where models and drivers live: `~/.granville`, or `GRANVILLE_HOME`."""
    folder = os.environ.get("GRANVILLE_HOME") or "~/.granville"
    try:
        return Path(folder).expanduser()
    except RuntimeError:
        raise StartupError(f"{folder}: whose home that is cannot be told; set GRANVILLE_HOME to a folder") from None


def check_socket(path: str, example: str) -> None:
    """Raises StartupError for a path that no Unix socket can have."""
    size = len(os.fsencode(path))
    if not size:
        raise StartupError(f"--socket: a path is needed, for example {example}")
    if size > MAX_SOCKET_PATH_BYTES:
        raise StartupError(
            f"--socket: the path is {size} bytes long and a Unix socket's may have {MAX_SOCKET_PATH_BYTES}; "
            "choose a shorter one"
        )


def check_port(port: int) -> None:
    if not 0 <= port <= 65535:
        raise StartupError(f"--port: must be between 0 and 65535, got {port}")


def check_grace(seconds: float) -> None:
    if not seconds >= 0:
        raise StartupError(f"--grace: must not be negative, got {seconds:g}")


def at_least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise StartupError(f"{flag}: must be at least {least}, got {value}")


def more_than_nothing(flag: str, seconds: float) -> None:
    if not seconds > 0:
        raise StartupError(f"{flag}: must be more than 0 seconds, got {seconds:g}")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Times in seconds unless the name says otherwise."""

    socket: str = DEFAULT_SOCKET
    http_port: int = DEFAULT_HTTP_PORT
    """0 picks a free port."""
    tcp: tuple[str, int] | None = None
    queue_size: int = 1000
    """Waiting jobs; the next one is refused with 429."""
    timeout_s: float = 300.0
    """A job's deadline when its request gives no `timeout_ms`: waiting and running together."""
    grace_s: float = 30.0
    """How long running jobs may go on after SIGTERM."""
    age_after_s: float = 30.0
    """A job that has waited so long is ordered a class higher, and again after as long."""
    prefill_ms: float | None = None
    """Prefill between two decodes of running streams; None lets the driver choose."""
    stall_s: float = 30.0
    """A model that is busy and has done no step for so long is not healthy; an isolated one is then replaced."""
    isolate: bool = True
    """Run each model's driver in a process of its own."""
    delivery_ttl_s: float = 60.0
    """How long a callback that cannot be reached is tried again."""
    callback_stall_s: float = 10.0
    """A callback that takes no message for so long has lost it."""
    callback_transport: str = "httpx"
    """What POSTs to `http://` callbacks: httpx or asks."""
    max_senders: int = 64
    """Callback connections at once."""
    max_connections: int = 4096
    max_request_bytes: int = 1 << 20
    max_sound_request_bytes: int = 32 << 20
    """The same while a model is served that takes recordings."""
    part_message_s: float = 30.0
    """A message that has begun must be whole within this."""
    max_outbox_bytes: int = 4 << 20
    """Unsent replies a connection or a job may hold before its reader counts as too slow."""
    write_stall_s: float = 60.0
    """A peer that takes no byte for so long is gone."""
    strategy: Strategy = "least-busy"
    """Which model of a type takes a job that names none."""
    rank_ms: float = 250.0
    """How long a request that asks to be ranked waits for it; then it is normal."""
    memory_bytes: int | None = None
    """The daemon's whole budget (scheduling/memory.py); None: no bound is kept."""
    kv_ram_bytes: int = 256 << 20
    """Of that, cached and parked states of all models together."""
    kv_disk_bytes: int = 4 << 30
    """States on disk, all models together; 0 keeps none there."""
    kv_dir: Path | None = None
    """Where states and transcripts lie; None keeps none on disk."""
    session_ttl_s: float = 7 * 86_400.0
    """A session that nobody went on with for so long is forgotten."""
    max_sessions: int = 1024

    @property
    def open_files(self) -> int:
        """Room for every connection and sender, and for what the daemon has open itself."""
        return self.max_connections + 2 * self.max_senders + 128

    def __post_init__(self) -> None:
        check_socket(self.socket, DEFAULT_SOCKET)
        for flag, value, least in (
            ("--queue-size", self.queue_size, 1),
            ("--max-connections", self.max_connections, 1),
            ("--max-senders", self.max_senders, 1),
            ("--max-request-bytes", self.max_request_bytes, 1024),
            ("--max-request-bytes", self.max_sound_request_bytes, 1024),
            ("--memory", 1 if self.memory_bytes is None else self.memory_bytes, 1),
            ("--kv-ram", self.kv_ram_bytes, 0),
            ("--kv-disk", self.kv_disk_bytes, 0),
            ("--max-sessions", self.max_sessions, 1),
        ):
            at_least(flag, value, least)
        for flag, seconds in (
            ("--timeout", self.timeout_s),
            ("--age-after", self.age_after_s),
            ("--step-timeout", self.stall_s),
            ("--delivery-ttl", self.delivery_ttl_s),
            ("--session-ttl", self.session_ttl_s),
        ):
            more_than_nothing(flag, seconds)
        if self.prefill_ms is not None and not self.prefill_ms > 0:
            raise StartupError(f"--prefill-ms: must be more than 0 milliseconds, got {self.prefill_ms:g}")
        if not self.rank_ms >= 0:
            raise StartupError(f"--rank-ms: must not be negative, got {self.rank_ms:g}")
        if self.strategy not in get_args(Strategy):
            raise StartupError(f"--strategy: expected {' or '.join(get_args(Strategy))}, got {self.strategy!r}")
        check_grace(self.grace_s)
        check_port(self.http_port)
