"""Measure Granville and llama.cpp's server in turn; print the medians and ratios, and write them as JSON.

    .venv/bin/python benchmarks/bench.py
    .venv/bin/python benchmarks/bench.py --quick --scenarios serving kernel

`benchmarks/peers.py` builds what it is measured against. docs/performance.md says what each figure means. Nothing
else should run on the machine meanwhile: both sides spin on all cores, and the last table tells who else did.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, get_args

import cyclopts
from granville_llama.binding import BUILT_WITH_AMX

from benchmarks.contention import long_prompt, neighbour, shared_prefix, urgent
from benchmarks.conversations import churn, sessions
from benchmarks.isolation import isolation
from benchmarks.kernel import kernel
from benchmarks.peers import ROOT, Peers, PeersError, prepare
from benchmarks.processes import BenchError, Watch
from benchmarks.ranking import ranking
from benchmarks.report import Figure, Goal, Results, publish
from benchmarks.serving import servers, throughput
from benchmarks.settings import Settings
from benchmarks.startup import start_up
from benchmarks.stress import critical, left_over, saturated
from benchmarks.tuned import tuned
from benchmarks.warming import warm

Scenario = Literal[
    "serving", "leftover", "saturated", "critical", "kernel", "startup",
    "prefix", "longprompt", "urgent", "sessions", "neighbour", "churn", "tuned",
    "ranking", "isolation", "warm",
]  # fmt: skip
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
CLIENTS_BY_SLOTS = {8: (1, 4, 8), 16: (16,)}
LEFT_OVER_SLOTS = 8
QUICK_ROUNDS = 1
QUICK_REQUESTS = 1
QUICK_CHURN_MINUTES = 0.5
THREADS = min(2, len(os.sched_getaffinity(0)))
"""More than two change the proportions that the goals were set for."""
REPACK = not BUILT_WITH_AMX
MAX_OTHERS_PERCENT = 5.0
MEANWHILE = "The machine meanwhile"

Positive = Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1))]
app = cyclopts.App(version_flags=[])


@app.default
def bench(
    *,
    scenarios: Annotated[tuple[Scenario, ...], cyclopts.Parameter(consume_multiple=True)] = SCENARIOS,
    rounds: Positive = 5,
    requests: Positive = 3,
    max_tokens: Positive = 64,
    threads: Positive = THREADS,
    context_size: Positive = 1024,
    repack: bool = REPACK,
    minutes: float = 10.0,
    quick: bool = False,
    before: Path | None = None,
    json: Path = ROOT / "build" / "bench" / "results.json",
) -> int:
    """Run the scenarios and print a table for each.

    Parameters
    ----------
    scenarios
        Which to run.
    rounds
        Every subject is measured once a round.
    requests
        Requests of each client in a round.
    max_tokens
        Length of every answer.
    threads
        Of the model, on both sides.
    context_size
        Tokens a slot, on both sides.
    repack
        Let llama.cpp rearrange weights for the CPU, on both sides; as our driver does by default.
    minutes
        How long sessions churn.
    quick
        One round of one request a client: to see that everything runs.
    before
        The interpreter of an environment with an earlier Granville: `serving` measures that one too.
    json
        Where the results go.
    """
    settings = Settings(
        rounds=QUICK_ROUNDS if quick else rounds,
        threads=threads,
        context_size=context_size,
        max_tokens=max_tokens,
        requests_per_client=QUICK_REQUESTS if quick else requests,
        repack=repack,
        churn_minutes=QUICK_CHURN_MINUTES if quick else minutes,
        before=None if before is None else str(before.absolute()),
    )
    figures: list[Figure] = []
    failure: Exception | None = None
    try:
        figures.extend(_measure(prepare(), settings, scenarios))
    except (BenchError, PeersError) as error:
        failure = error  # what was measured before it is worth having
    figures.sort(key=lambda figure: figure.scenario == MEANWHILE)  # last, the others as they were
    results = Results(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=sys.argv[1:],
        machine=_machine(settings),
        rounds=settings.rounds,
        figures=figures,
    )
    publish(results, json)
    if failure is not None:
        print(f"\nbench: {failure}", file=sys.stderr)
    return 0 if failure is None else 1


def _measure(peers: Peers, settings: Settings, scenarios: tuple[Scenario, ...]) -> Iterator[Figure]:
    for slots, numbers in CLIENTS_BY_SLOTS.items():
        clients = numbers if "serving" in scenarios else ()
        thins_out = "leftover" in scenarios and slots == LEFT_OVER_SLOTS
        if clients or thins_out:
            yield from _on_servers(peers, settings, slots, clients, thins_out)
    others: dict[Scenario, Callable[[], list[Figure]]] = {
        "saturated": partial(saturated, peers, settings),
        "critical": partial(critical, peers, settings),
        "kernel": partial(kernel, settings),
        "startup": partial(start_up, peers, settings),
        "prefix": partial(shared_prefix, peers, settings),
        "longprompt": partial(long_prompt, peers, settings),
        "urgent": partial(urgent, peers, settings),
        "sessions": partial(sessions, peers, settings),
        "neighbour": partial(neighbour, peers, settings),
        "churn": partial(churn, peers, settings),
        "tuned": partial(tuned, peers, settings),
        "ranking": partial(ranking, peers, settings),
        "isolation": partial(isolation, peers, settings),
        "warm": partial(warm, peers, settings),
    }
    for name, measure in others.items():
        if name in scenarios:
            watch = Watch([])
            with watch.over(None):
                figures = _timed(name, measure)
            yield from figures
            yield from _alone(name, watch)


def _on_servers(
    peers: Peers, settings: Settings, slots: int, clients: tuple[int, ...], thins_out: bool
) -> Iterator[Figure]:
    with servers(peers, settings, slots) as bench:
        for number in clients:
            yield from _timed(f"{number} clients", partial(throughput, peers, settings, bench, number, slots))
        if thins_out:
            yield from _timed("four left over from eight", partial(left_over, settings, bench))
        yield from _alone(f"servers of {slots} slots", bench.watch)


def _alone(name: str, watch: Watch) -> Iterator[Figure]:
    """Whether the figures can be trusted: what else used the cores while they were measured."""
    rows = {"other programs": watch.foreign_s}
    if watch.servers:
        rows["servers not under load"] = watch.idle_s
    for who, used in rows.items():
        yield Figure(
            scenario=MEANWHILE,
            name=f"{name}: {who}",
            unit="% of a core",
            values={"used": [100 * used / watch.seconds]},
            goals=[Goal(MAX_OTHERS_PERCENT, "at most")],
        ).conclude()


def _timed(name: str, measure: Callable[[], list[Figure]]) -> list[Figure]:
    """Progress on standard error: a run takes minutes."""
    print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
    began = time.monotonic()
    figures = measure()
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return figures


def _machine(settings: Settings) -> dict[str, str]:
    cpu = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "?")
    return {
        "cpu": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "load_average": " ".join(_lines("/proc/loadavg")[0].split()[:3]),
        "system": platform.platform(),
        "python": platform.python_version(),
        "llama-cpp-python": version("llama-cpp-python"),
        "trio": version("trio"),
        "granville": version("granville"),
        "settings": str(settings),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


if __name__ == "__main__":
    sys.exit(app())
