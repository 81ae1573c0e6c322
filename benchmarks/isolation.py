"""What it costs to run the driver in a process of its own: the same daemon with and without."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack

from benchmarks.clients import ours
from benchmarks.peers import Peers
from benchmarks.processes import granville
from benchmarks.report import Figure, Goal
from benchmarks.serving import pick, turn
from benchmarks.settings import Settings
from granville.testing.latency import Summary, summarise

CLIENTS = (1, 4, 8)
SLOTS = 8
IN_PROCESS = "in process"
LEAST = 0.97
"""Of the rate in process: with that it is worth having by default."""


def isolation(peers: Peers, settings: Settings) -> list[Figure]:
    """Throughput and latency of both, in turn, with 1, 4 and 8 clients."""
    found: dict[int, dict[str, list[Summary]]] = {clients: defaultdict(list) for clients in CLIENTS}
    arguments = [str(peers.model), "--slots", str(SLOTS), *settings.driver_flags]
    with ExitStack() as stack:
        subjects = [
            ours(stack.enter_context(granville([*arguments, flag], f"granville{flag}")), name=name)
            for name, flag in (("isolated", "--isolate"), (IN_PROCESS, "--no-isolate"))
        ]
        for subject in subjects:
            subject.load(clients=SLOTS, requests=SLOTS, max_tokens=[8])
        for number in range(settings.rounds):
            for clients, summaries in found.items():
                for subject in turn(subjects, number):
                    requests = clients * settings.requests_per_client
                    records = subject.load(clients=clients, requests=requests, max_tokens=[settings.max_tokens])
                    summaries[subject.name].append(summarise(records))
    return [figure.conclude() for clients, summaries in found.items() for figure in _figures(clients, summaries)]


def _figures(clients: int, summaries: dict[str, list[Summary]]) -> list[Figure]:
    scenario = f"The driver in a process of its own, {clients} client{'s' * (clients > 1)}"
    latencies = (("time to first token", "first_ms", "p50"), ("inter-token latency", "gap_ms", "p50"),
                 ("inter-token latency", "gap_ms", "p99"))  # fmt: skip
    return [
        Figure(
            scenario=scenario,
            name="throughput",
            unit="tokens/s",
            values={name: [one.tokens_per_s for one in rounds] for name, rounds in summaries.items()},
            goals=[Goal(LEAST, of=IN_PROCESS)],
        ),
        *(
            Figure(
                scenario=scenario,
                name=f"{name} {percent}",
                unit="ms",
                values={
                    subject: [pick(getattr(one, field), percent) for one in rounds]
                    for subject, rounds in summaries.items()
                },
            )
            for name, field, percent in latencies
        ),
    ]
