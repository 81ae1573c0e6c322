"""A thousand sessions churn over eight slots for a minute: memory stays within its budget, and nobody is lost."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.e2e.harness import Daemon, Map, is_terminal, running

SESSIONS = 1000
SLOTS = 8
IN_FLIGHT = 24
MINUTE_S = 60.0
BUDGET_MIB = 530
KV_RAM_MIB = 16
KV_DISK_MIB = 64


def highest_rss_mib(daemon: Daemon) -> float:
    """Over the life of the process (proc(5): VmHWM)."""
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kib) / 1024


@pytest.mark.timeout(240)
def test_memory_stays_within_its_budget(folder: Path, smollm2: Path) -> None:
    flags = ["--slots", str(SLOTS), "--context-size", "1024", "--no-http", "--memory", f"{BUDGET_MIB}M"]
    flags += ["--kv-ram", f"{KV_RAM_MIB}M", "--kv-disk", f"{KV_DISK_MIB}M"]
    rng = random.Random(4)
    ends: list[Map] = []
    sessions: set[str] = set()
    with running(folder, *flags, model=smollm2, driver="granville-llama") as daemon, daemon.connect() as client:
        client.sock.settimeout(60)

        def send(number: int) -> None:
            session_id = f"s{rng.randrange(SESSIONS)}"
            sessions.add(session_id)
            words = " ".join(rng.choices(("sea", "ship", "old", "wide", "home"), k=rng.randrange(3, 40)))
            client.send(
                {
                    "id": str(number),
                    "text": f"Go on with these words: {words}",
                    "session_id": session_id,
                    "max_tokens": rng.randrange(1, 6),
                    "priority": rng.choices(("critical", "normal", "low"), weights=(1, 5, 4))[0],
                }
            )

        ends_at = time.monotonic() + MINUTE_S
        sent = 0
        while sent < IN_FLIGHT or len(ends) < sent:
            while sent - len(ends) < IN_FLIGHT and time.monotonic() < ends_at:
                send(sent)
                sent += 1
            message = client.receive()
            ends += [message] if is_terminal(message) else []
        status = daemon.status()
        highest = highest_rss_mib(daemon)
        assert daemon.stop() == 0
    assert len({end["id"] for end in ends}) == len(ends) == sent
    assert {end.get("error") for end in ends} == {None}
    (model,) = status["models"]
    stats = model["driver_stats"]
    assert 0 < stats["kv_ram_bytes"] <= KV_RAM_MIB << 20
    assert 0 < stats["kv_disk_bytes"] <= KV_DISK_MIB << 20
    assert status["sessions"] == len(sessions)
    assert status["jobs"]["parked"] == model["running"] == 0
    assert highest <= BUDGET_MIB * 1.1, f"{highest:.0f} MiB"
