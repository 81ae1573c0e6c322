"""The daemon's figures in the text format that Prometheus reads (prometheus.io, exposition formats)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def metrics_text(status: Mapping[str, Any]) -> str:
    runs = status["runs"]
    lines = [
        *_metric("crucible_runs_going_on", "gauge", "Runs that go on now.", {"": runs["going_on"]}),
        *_metric("crucible_runs_limit", "gauge", "Runs that may go on at once.", {"": runs["limit"]}),
        *_metric("crucible_runs_accepted_total", "counter", "Runs started or resumed.", {"": status["accepted"]}),
        *_metric(
            "crucible_runs_ended_total", "counter", "Runs by how they ended.",
            {f'{{state="{state}"}}': count for state, count in status["ended"].items()},
        ),
        *_metric("crucible_rejected_total", "counter", "Operations that were refused.", {"": status["rejected"]}),
        *_metric("crucible_delivered_total", "counter", "Ends delivered to callbacks.", {"": status["delivered"]}),
        *_metric("crucible_undelivered_total", "counter", "Ends given up.", {"": status["undelivered"]}),
        *_metric("crucible_connections", "gauge", "Connections to the socket.", {"": status["connections"]}),
        *_metric("crucible_uptime_seconds", "gauge", "Since the daemon started.", {"": round(status["uptime_s"], 1)}),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _metric(name: str, type: str, help: str, values: Mapping[str, object]) -> list[str]:
    return [f"# HELP {name} {help}", f"# TYPE {name} {type}", *(f"{name}{of} {value}" for of, value in values.items())]
