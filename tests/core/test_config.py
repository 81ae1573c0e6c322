"""What `granville serve` refuses to start with, in a sentence that names the flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from granville.config import MAX_SOCKET_PATH_BYTES, ServeConfig, home
from granville.errors import StartupError


def test_the_defaults_of_the_documentation() -> None:
    config = ServeConfig()
    assert (config.socket, config.http_port, config.tcp) == ("/tmp/granville.sock", 8080, None)
    assert (config.timeout_s, config.max_request_bytes, config.part_message_s) == (300, 1 << 20, 30)
    assert (config.delivery_ttl_s, config.queue_size) == (60, 1000)


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"socket": ""}, "--socket"),
        ({"socket": "/tmp/" + "x" * 103}, "--socket"),
        ({"socket": "/tmp/" + "é" * 52}, "--socket"),
        ({"queue_size": 0}, "--queue-size"),
        ({"queue_size": -1}, "--queue-size"),
        ({"max_connections": 0}, "--max-connections"),
        ({"max_senders": 0}, "--max-senders"),
        ({"max_request_bytes": 1023}, "--max-request-bytes"),
        ({"timeout_s": 0}, "--timeout"),
        ({"timeout_s": float("nan")}, "--timeout"),
        ({"age_after_s": -1}, "--age-after"),
        ({"stall_s": 0}, "--step-timeout"),
        ({"delivery_ttl_s": 0}, "--delivery-ttl"),
        ({"strategy": "random"}, "--strategy"),
        ({"rank_ms": -1}, "--rank-ms"),
        ({"memory_bytes": 0}, "--memory"),
        ({"kv_ram_bytes": -1}, "--kv-ram"),
        ({"kv_disk_bytes": -1}, "--kv-disk"),
        ({"session_ttl_s": 0}, "--session-ttl"),
        ({"max_sessions": 0}, "--max-sessions"),
        ({"grace_s": -0.1}, "--grace"),
        ({"grace_s": float("nan")}, "--grace"),
        ({"prefill_ms": 0}, "--prefill-ms"),
        ({"prefill_ms": float("nan")}, "--prefill-ms"),
        ({"http_port": -1}, "--port"),
        ({"http_port": 65536}, "--port"),
    ],
)
def test_what_cannot_be_is_refused_by_its_flag(fields: dict[str, Any], flag: str) -> None:
    with pytest.raises(StartupError, match=f"^{flag}: ") as refused:
        ServeConfig(**fields)
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"socket": "/tmp/" + "x" * (MAX_SOCKET_PATH_BYTES - 5)},
        {"queue_size": 1, "max_connections": 1, "max_senders": 1, "max_request_bytes": 1024},
        {"grace_s": 0.0, "http_port": 0, "rank_ms": 0, "strategy": "round-robin"},
        {"memory_bytes": 1, "kv_ram_bytes": 0, "kv_disk_bytes": 0, "kv_dir": None, "max_sessions": 1},
        {"http_port": 65535, "prefill_ms": 0.5},
    ],
)
def test_the_edges_are_allowed(fields: dict[str, Any]) -> None:
    config = ServeConfig(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


def test_home_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GRANVILLE_HOME", raising=False)
    assert home() == tmp_path / ".granville"
    monkeypatch.setenv("GRANVILLE_HOME", "~/elsewhere")
    assert home() == tmp_path / "elsewhere"
    monkeypatch.setenv("GRANVILLE_HOME", "")
    assert home() == tmp_path / ".granville"
    monkeypatch.setenv("GRANVILLE_HOME", "~nobody-of-this-name/models")
    with pytest.raises(StartupError, match="set GRANVILLE_HOME to a folder"):
        home()
