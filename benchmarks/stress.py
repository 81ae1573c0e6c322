"""Three promises under strain: a batch that thins out, a kernel thread that is busy, a queue that is full."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from benchmarks.clients import Subject, ours, run_load
from benchmarks.peers import ROOT, Peers
from benchmarks.processes import BenchError, Child, granville
from benchmarks.report import Figure, Goal
from benchmarks.serving import Bench
from benchmarks.settings import Settings
from granville.testing.latency import Record, steady_rate, summarise

SHORT_TOKENS = 16
SKIPPED_TOKENS = 24
"""Where the common window of four streams begins, on both sides of the comparison: after the four short ones."""
WAITING = 100
CRITICAL_SLOTS = 2
CRITICAL_ROUNDS = 3
CRITICAL_DELAY_S = 1.0
SAME_STEP_S = 0.005
"""First tokens so close together come from one step: those two started together."""


def left_over(settings: Settings, bench: Bench) -> list[Figure]:
    """Four streams left over from eight against four started alone: every other slot falls empty in between."""
    long = SKIPPED_TOKENS + settings.max_tokens
    rates: dict[str, list[float]] = {}
    for _ in range(settings.rounds):
        for subject in (bench.granville, bench.peer):
            for name, clients, lengths in (("left", 8, [SHORT_TOKENS, long]), ("alone", 4, [long])):
                with bench.watch.over(subject.server):
                    records = subject.load(clients=clients, requests=clients, max_tokens=lengths)
                streams = [record for record in records if len(record.pieces) > SKIPPED_TOKENS]
                if len(streams) != 4:
                    raise BenchError(f"{len(streams)} of the four long streams of {subject.name} are long enough")
                rates.setdefault(f"{subject.name}/{name}", []).append(_common_rate(streams, records))
    figures = []
    for subject in (bench.granville, bench.peer):
        left, alone = rates[f"{subject.name}/left"], rates[f"{subject.name}/alone"]
        figure = Figure(
            scenario="Four streams left over from eight",
            name=subject.name,
            unit="tokens/s",
            values={"left over": left, "four alone": alone},
            goals=[Goal(0.95, of="four alone")] if subject is bench.granville else [],
        )
        figures.append(figure.conclude())
    return figures


def _common_rate(streams: Sequence[Record], records: Sequence[Record]) -> float:
    """From when every other stream has ended and all of these are past the tokens to skip."""
    others = [r.ended for r in records if r not in streams and r.ended is not None]
    after = max([*others, *(stream.pieces[SKIPPED_TOKENS - 1] for stream in streams)])
    return steady_rate(streams, after)


def saturated(peers: Peers, settings: Settings) -> list[Figure]:
    """Tokens a second while another client keeps the kernel's own thread busy, against quiet. With as many threads
    in the model as there are cores the flood also takes cores away; with one fewer only the interpreter is shared."""
    figures = []
    for threads in dict.fromkeys((max(1, settings.threads - 1), settings.threads)):
        arguments = [str(peers.model), "--slots", "8", *replace(settings, threads=threads).driver_flags]
        with granville(arguments, "granville-saturated") as server:
            subject = ours(server)
            subject.load(clients=8, requests=8, max_tokens=[8])
            quiet, busy, refused = [], [], []
            for _ in range(settings.rounds):
                quiet.append(_rate(subject, settings))
                with _flood(server) as rates:
                    busy.append(_rate(subject, settings))
                refused += rates
        figure = Figure(
            scenario="The kernel's own thread saturated by requests that it refuses",
            name=f"8 clients, model on {threads} thread{'s' * (threads > 1)}",
            unit="tokens/s",
            values={"flooded": busy, "quiet": quiet},
            goals=[Goal(0.8, of="quiet")],
            note=f"{min(refused):.0f} to {max(refused):.0f} requests refused a second meanwhile",
        )
        figures.append(figure.conclude())
    return figures


def _rate(subject: Subject, settings: Settings) -> float:
    requests = 8 * settings.requests_per_client
    return summarise(subject.load(clients=8, requests=requests, max_tokens=[settings.max_tokens])).tokens_per_s


@contextmanager
def _flood(server: Child) -> Iterator[list[float]]:
    """Floods for as long as the block lasts; then the list holds the rate of refused requests."""
    rates: list[float] = []
    command = [sys.executable, "-m", "benchmarks.flood", server.address]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield rates
        finally:
            output, _ = process.communicate()
    if process.returncode != 0:
        raise BenchError(f"the flood ended with {process.returncode}")
    rates.append(json.loads(output)["refused_per_s"])


def critical(peers: Peers, settings: Settings) -> list[Figure]:
    """A critical request that comes while a hundred low ones wait: how many of them start before it."""
    before, waited, low_waited = [], [], []
    with granville(
        [str(peers.model), "--slots", str(CRITICAL_SLOTS), *settings.driver_flags], "granville-critical"
    ) as server:
        low = ours(server, "--priority", "low", "--in-flight", str(WAITING + CRITICAL_SLOTS))
        first = ours(server, "--priority", "critical")
        first.load(clients=1, requests=1, max_tokens=[4])
        for _ in range(min(settings.rounds, CRITICAL_ROUNDS)):
            crowd = low.start(clients=1, requests=WAITING + CRITICAL_SLOTS, max_tokens=[SHORT_TOKENS])
            time.sleep(CRITICAL_DELAY_S)
            (urgent,) = first.load(clients=1, requests=1, max_tokens=[SHORT_TOKENS])
            lows = run_load(crowd)
            before.append(float(_started_between(lows, urgent)))
            waited.append(1000 * (urgent.pieces[0] - urgent.sent))
            low_waited.append(1000 * max(r.pieces[0] - r.sent for r in lows))
    scenario = f"A critical request behind {WAITING} waiting low ones, {CRITICAL_SLOTS} slots"
    return [
        Figure(
            scenario=scenario,
            name="low requests that took a slot between its ACK and its start",
            unit="requests",
            values={"critical": before},
            goals=[Goal(0, "at most")],
        ).conclude(),
        Figure(
            scenario=scenario,
            name="time to first token",
            unit="ms",
            values={"critical": waited, "the last low one": low_waited},
        ).conclude(),
    ]


def _started_between(lows: Sequence[Record], urgent: Record) -> int:
    """Low requests that were given a slot after the critical one's ACK and yet spoke before it: those that spoke
    before, less those whose slot was theirs already (one more than had ended, for each slot). Raises BenchError
    when hardly any was still waiting: then nothing was shown."""
    accepted = urgent.accepted
    if accepted is None or not urgent.pieces:
        raise BenchError("the critical request got no ACK or no text")
    waiting = sum(record.pieces[0] > accepted for record in lows) - CRITICAL_SLOTS
    if waiting < WAITING // 2:
        raise BenchError(f"only {waiting} low requests were waiting when the critical one came")
    ended = sum(record.ended is not None and record.ended < accepted for record in lows)
    spoke = sum(record.pieces[0] < urgent.pieces[0] - SAME_STEP_S for record in lows)
    return max(0, spoke - (ended + CRITICAL_SLOTS))
