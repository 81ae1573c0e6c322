"""Us and llama.cpp's server under the same load in turn, and the raw engines beside both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks.clients import Subject, ours, peer
from benchmarks.engine import batched_bench, driver_alone
from benchmarks.peers import Peers
from benchmarks.processes import Watch, granville, llama_server
from benchmarks.report import Figure, Goal
from benchmarks.settings import Settings
from granville.testing.latency import Record, Spread, summarise

PEER = "llama-server"
PEER_BEST = "llama-server, its best"
RAW = "batched-bench"
ALONE = "our driver alone"
BEFORE = "granville before"
GOALS = {1: 0.97, 4: 1.05, 8: 1.10, 16: 1.05}
RAW_GOAL = 0.90


@dataclass(frozen=True, slots=True)
class Bench:
    """Loaded servers of one number of slots."""

    granville: Subject
    peer: Subject
    best: Subject
    before: Subject | None
    watch: Watch

    @property
    def subjects(self) -> list[Subject]:
        return [self.granville, self.peer, self.best, *([self.before] if self.before else [])]


@contextmanager
def servers(peers: Peers, settings: Settings, slots: int) -> Iterator[Bench]:
    """All loaded and warmed at once; only one is under load at a time, and an idle one must stay idle.

    The peer runs twice: with flash attention off and a prompt cache in its slots alone, as we do, and with its own
    defaults.
    """
    size = {"slots": slots, "context_size": settings.context_size, "threads": settings.threads}
    with ExitStack() as stack:
        enter = stack.enter_context
        arguments = [str(peers.model), "--slots", str(slots), *settings.driver_flags]
        first = enter(granville(arguments))
        same = [*settings.peer_flags, "--flash-attn", "off", "--cache-ram", "0"]
        second = enter(llama_server(peers, **size, arguments=same, name="llama-server"))
        best = list(settings.peer_flags)
        third = enter(llama_server(peers, **size, arguments=best, name="llama-server-best"))
        loaded = [first, second, third]
        before = None
        if settings.before is not None:
            loaded.append(enter(granville(arguments, "granville-before", python=settings.before)))
            before = ours(loaded[-1], name=BEFORE)
        bench = Bench(
            ours(first),
            peer(second, "--cache-prompt", name=PEER),
            peer(third, "--cache-prompt", name=PEER_BEST),
            before,
            Watch(loaded),
        )
        for subject in bench.subjects:
            subject.load(clients=slots, requests=slots, max_tokens=[8])
        yield bench


def throughput(peers: Peers, settings: Settings, bench: Bench, clients: int, slots: int) -> list[Figure]:
    """Tokens a second over the whole load, time to first token and inter-token latency with so many clients."""
    runs: dict[str, list[list[Record]]] = defaultdict(list)
    raw: list[float] = []
    alone: list[float] = []
    requests = clients * settings.requests_per_client
    for number in range(settings.rounds):
        for subject in turn(bench.subjects, number):
            with bench.watch.over(subject.server):
                records = subject.load(clients=clients, requests=requests, max_tokens=[settings.max_tokens])
            runs[subject.name].append(records)
        prompt_tokens = runs[bench.granville.name][-1][0].prompt_tokens
        raw.append(batched_bench(peers, settings, clients, prompt_tokens))
        lots = driver_alone(peers, settings, clients, slots, settings.requests_per_client).lots
        alone.append(sum(lot.tokens for lot in lots) / sum(lot.seconds for lot in lots))
    return [figure.conclude() for figure in _figures(clients, settings, runs, raw, alone)]


def turn(subjects: Sequence[Subject], number: int) -> list[Subject]:
    """Each round begins with another subject, so that none always has the warmest or the quietest machine."""
    start = number % len(subjects)
    return [*subjects[start:], *subjects[:start]]


def _figures(
    clients: int,
    settings: Settings,
    runs: dict[str, list[list[Record]]],
    raw: list[float],
    alone: list[float],
) -> Iterator[Figure]:
    scenario = f"Serving, {clients} client{'s' * (clients > 1)}"
    summaries = {name: [summarise(records) for records in rounds] for name, rounds in runs.items()}
    yield Figure(
        scenario=scenario,
        name="throughput",
        unit="tokens/s",
        values={name: [s.tokens_per_s for s in rounds] for name, rounds in summaries.items()}
        | {RAW: raw, ALONE: alone},
        goals=[Goal(GOALS[clients], of=PEER), Goal(RAW_GOAL, of=RAW)] if clients in GOALS else [],
        note=_lengths(runs, settings.max_tokens),
    )
    for name, latency in (("time to first token", "first_ms"), ("inter-token latency", "gap_ms")):
        for percent in ("p50", "p99"):
            values = {
                subject: [pick(getattr(s, latency), percent) for s in rounds] for subject, rounds in summaries.items()
            }
            yield Figure(scenario=scenario, name=f"{name} {percent}", unit="ms", values=values)


def pick(spread: Spread | None, percent: str) -> float:
    if spread is None:
        raise ValueError("an answer came without streamed text")
    value: float = getattr(spread, percent)
    return value


def _lengths(runs: dict[str, list[list[Record]]], max_tokens: int) -> str:
    """What was really produced. Rates count these tokens, so a short answer costs no one anything."""
    short = {
        name: sum(record.completion_tokens < max_tokens for records in rounds for record in records)
        for name, rounds in runs.items()
    }
    prompts = sorted({r.prompt_tokens for rounds in runs.values() for records in rounds for r in records})
    early = ", ".join(f"{count} of {name}" for name, count in short.items() if count) or "none"
    return f"Prompts of {' or '.join(map(str, prompts))} tokens, answers of {max_tokens}; ended early: {early}."
