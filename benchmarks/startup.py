"""What it costs to be there: time until ready, memory over weights and KV cache, and the smallest command."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import defaultdict

import trio

from benchmarks.clients import ours, peer
from benchmarks.engine import driver_alone
from benchmarks.peers import ROOT, Peers
from benchmarks.processes import BenchError, granville, llama_server
from benchmarks.report import Figure, Goal
from benchmarks.settings import Settings
from granville.client import connect

SLOTS = 8
VERSION_RUNS = 5
"""In a round; the fastest counts, for the command does nothing that varies."""
MIB = 1 << 20


def start_up(peers: Peers, settings: Settings) -> list[Figure]:
    """Start us and the peer in turn, and look at the memory of both after a load on all slots."""
    seen: dict[str, list[float]] = defaultdict(list)
    for _ in range(settings.rounds):
        seen["load"].append(driver_alone(peers, settings, 1, SLOTS, 1).load_s)
        arguments = [str(peers.model), "--slots", str(SLOTS), *settings.driver_flags]
        with granville(arguments, "granville-startup") as server:
            seen["ready"].append(server.ready_s)
            ours(server).load(clients=SLOTS, requests=2 * SLOTS, max_tokens=[settings.max_tokens])
            rss, pss = server.memory_bytes()
            over = trio.run(_weights_and_kv_bytes, server.address)
            seen["rss"].append((rss - over) / MIB)
            seen["pss"].append((pss - over) / MIB)
        size = {"slots": SLOTS, "context_size": settings.context_size, "threads": settings.threads}
        same = [*settings.peer_flags, "--flash-attn", "off", "--cache-ram", "0"]
        with llama_server(peers, **size, arguments=same, name="llama-server-startup") as server:
            seen["peer ready"].append(server.ready_s)
            both = peer(server, name="llama-server")
            both.load(clients=SLOTS, requests=2 * SLOTS, max_tokens=[settings.max_tokens])
            rss, pss = server.memory_bytes()
            seen["peer rss"].append((rss - over) / MIB)
            seen["peer pss"].append((pss - over) / MIB)
        seen["version"].append(1000 * min(_version_s() for _ in range(VERSION_RUNS)))
    return [figure.conclude() for figure in _figures(seen, settings)]


def _figures(seen: dict[str, list[float]], settings: Settings) -> list[Figure]:
    scenario = f"Start-up and memory, {SLOTS} slots of {settings.context_size} tokens"
    besides = [ready - load for ready, load in zip(seen["ready"], seen["load"], strict=True)]

    def figure(name: str, unit: str, values: dict[str, list[float]], goal: float | None = None) -> Figure:
        goals = [] if goal is None else [Goal(goal, "at most")]
        return Figure(scenario=scenario, name=name, unit=unit, values=values, goals=goals)

    return [
        figure("from exec until ready", "s", {"granville": seen["ready"], "llama-server": seen["peer ready"]}),
        figure("of that, the driver's load alone", "s", {"granville": seen["load"]}),
        figure("ready besides the load", "s", {"granville": besides}, 1.0),
        figure(
            "RSS over weights and KV, all processes",
            "MiB",
            {"granville": seen["rss"], "llama-server": seen["peer rss"]},
            120.0,
        ),
        figure(
            "PSS over weights and KV, all processes",
            "MiB",
            {"granville": seen["pss"], "llama-server": seen["peer pss"]},
        ),
        figure("granville version", "ms", {"granville": seen["version"]}, 100.0),
    ]


async def _weights_and_kv_bytes(socket: str) -> int:
    async with connect(socket) as client:
        (model,) = (await client.status())["models"]
        size: int = model["memory_bytes"]
        return size


def _version_s() -> float:
    """The installed command, as a person runs it."""
    command = [str((ROOT / sys.executable).with_name("granville")), "version"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode != 0 or not done.stdout.strip():
        raise BenchError(f"`granville version` ended with {done.returncode}: {done.stderr.decode()}")
    return seconds
