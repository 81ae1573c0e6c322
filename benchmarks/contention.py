"""Who waits for whom: behind one prefix, beside a long prompt, before a crowd, and beside another program."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

from benchmarks.clients import Subject, ours, peer, run_load
from benchmarks.peers import Peers
from benchmarks.processes import STOP_S, BenchError, Child, granville, llama_server
from benchmarks.report import Figure, Goal
from benchmarks.serving import PEER, pick, turn
from benchmarks.settings import Settings
from benchmarks.watching import watch_threads
from granville.testing.latency import Record, Summary, gaps, percentile, summarise

PARAGRAPH = (
    "The lighthouse stood on the last rock before the open sea, and its keeper wrote down every ship that passed, the "
    "hour, the weather and the colour of her sails. In winter few came by, and he mended ropes and read old letters. "
)
"""About 48 tokens."""
QUESTION = " Question {n}: what did the keeper write down?"
PREFIX_TOKENS = 512
LONG_TOKENS = 1500
LONG_CONTEXT = 2048
PARAGRAPH_TOKENS = 48
STREAMS = 4
STREAM_TOKENS = 160
QUIET_S = 1.5
"""How long the streams run before the long prompt comes."""
SETTLE_S = 5.0
"""Within which a changed machine must have been noticed."""
COURSE_S = 4.0
"""A quarter of what is plotted: quiet, busy for twice as long, quiet."""
COURSE_REQUESTS = 50
"""Of each client; more than can be answered in that time."""
WAITING = 100
CROWD_TOKENS = (32, 40, 48, 56, 64)
"""Of different lengths, or all slots would be free at the same moments."""
LEAST_BUSY = 4
"""Low jobs on the eight slots that make the daemon a busy one."""


def shared_prefix(peers: Peers, settings: Settings) -> list[Figure]:
    """Eight clients with questions of their own behind one beginning, another beginning each round."""
    summaries: dict[str, list[Summary]] = {}
    with _both(peers, settings, slots=8) as subjects:
        for number in range(settings.rounds):
            text = f"Story {number}-{time.time_ns()}. {PARAGRAPH * (PREFIX_TOKENS // PARAGRAPH_TOKENS)}{QUESTION}"
            for subject in turn(subjects, number):
                load = replace(subject, command=(*subject.command, "--text", text))
                records = load.load(
                    clients=8, requests=8 * settings.requests_per_client, max_tokens=[settings.max_tokens]
                )
                summaries.setdefault(subject.name, []).append(summarise(records))
    scenario = f"Eight clients behind one prefix of {PREFIX_TOKENS} tokens"
    figures = [
        Figure(
            scenario=scenario,
            name="throughput",
            unit="tokens/s",
            values={name: [s.tokens_per_s for s in rounds] for name, rounds in summaries.items()},
            goals=[Goal(3.0, of=PEER)],
        )
    ]
    figures += [
        Figure(
            scenario=scenario,
            name=f"time to first token {percent}",
            unit="ms",
            values={name: [pick(s.first_ms, percent) for s in rounds] for name, rounds in summaries.items()},
            goals=[Goal(0.25, "at most", PEER)],
        )
        for percent in ("p50", "p99")
    ]
    return [figure.conclude() for figure in figures]


def long_prompt(peers: Peers, settings: Settings) -> list[Figure]:
    """A prompt of 1 500 tokens comes while four streams run."""
    settings = replace(settings, context_size=LONG_CONTEXT)
    before: dict[str, list[float]] = {}
    p99: dict[str, list[float]] = {}
    worst: dict[str, list[float]] = {}
    first: dict[str, list[float]] = {}
    idle: dict[str, list[float]] = {}
    single: dict[str, dict[str, list[float]]] = {}
    with _both(peers, settings, slots=8) as subjects:
        for number in range(settings.rounds):
            for subject in turn(subjects, number):
                (alone,) = _long(subject, f"alone {number}").load(clients=1, requests=1, max_tokens=[8])
                late = _long(subject, f"late {number}", "--after", str(QUIET_S + 2)).start(
                    clients=1, requests=1, max_tokens=[8]
                )
                time.sleep(1.0)  # its process has started and is silent
                streams = subject.load(clients=STREAMS, requests=STREAMS, max_tokens=[STREAM_TOKENS])
                (record,) = run_load(late)
                quiet, during = _around(streams, record)
                kept = single.setdefault(subject.name, {"before": [], "meanwhile": []})
                kept["before"] += quiet
                kept["meanwhile"] += during
                for values, value in (
                    (before, percentile(quiet, 50)),
                    (p99, percentile(during, 99)),
                    (worst, during[-1]),
                    (first, 1000 * (record.pieces[0] - record.sent)),
                    (idle, 1000 * (alone.pieces[0] - alone.sent)),
                ):
                    values.setdefault(subject.name, []).append(value)
    scenario = f"A prompt of {LONG_TOKENS} tokens beside {STREAMS} streams"
    figures = []
    for name in before:
        mine = name == "granville"
        figures += [
            Figure(
                scenario=scenario,
                name=f"{name}: gap in the streams, p99",
                unit="ms",
                values={"meanwhile": p99[name], "their median before": before[name]},
                goals=[Goal(3.5, "at most", "their median before")] if mine else [],
                samples=single[name],
            ).conclude(),
            Figure(
                scenario=scenario,
                name=f"{name}: worst gap",
                unit="ms",
                values={"meanwhile": worst[name], "their median before": before[name]},
                goals=[Goal(5.0, "at most", "their median before")] if mine else [],
            ).conclude(),
            Figure(
                scenario=scenario,
                name=f"{name}: its own first token",
                unit="ms",
                values={"meanwhile": first[name], "idle server": idle[name]},
                goals=[Goal(2.5, "at most", "idle server")] if mine else [],
            ).conclude(),
        ]
    return figures


def _long(subject: Subject, name: str, *more: str) -> Subject:
    """No two begin alike: none is in a cache."""
    text = f"{name} {{n}}: " + PARAGRAPH * (LONG_TOKENS // PARAGRAPH_TOKENS)
    return replace(subject, command=(*subject.command, "--text", text, *more))


def _around(streams: Sequence[Record], late: Record) -> tuple[list[float], list[float]]:
    """Gaps of the streams in ms, ascending: those that ended before the late request came, once all ran, and those
    that touch its prefill. Raises BenchError when there is nothing on one side."""
    running = max(record.pieces[0] for record in streams)
    quiet, during = [], []
    for record in streams:
        for end, gap in zip(record.pieces[1:], gaps(record), strict=True):
            if running < end - gap and end <= late.sent:
                quiet.append(1000 * gap)
            elif end > late.sent and end - gap < late.pieces[0]:
                during.append(1000 * gap)
    if len(quiet) < STREAMS or len(during) < STREAMS:
        raise BenchError("the long prompt did not come while the streams ran: is the machine much faster or slower?")
    return sorted(quiet), sorted(during)


def urgent(peers: Peers, settings: Settings) -> list[Figure]:
    """A critical request while eight slots and a hundred waiting low jobs are busy: its first token, and whether the
    jobs that made room for it say what they say undisturbed."""
    crowd_size = WAITING + 8
    idle, busy, parked, changed = [], [], [], []
    with granville([str(peers.model), "--slots", "8", *settings.driver_flags], "granville-urgent") as server:
        low = ours(server, "--priority", "low", "--in-flight", str(crowd_size))
        critical = ours(server, "--priority", "critical")
        critical.load(clients=1, requests=1, max_tokens=[4])
        for _ in range(settings.rounds):
            (alone,) = critical.load(clients=1, requests=1, max_tokens=[16])
            first = time.time_ns() % 10**6 * 1000
            numbered = replace(low, command=(*low.command, "--text", f"{first} " + "{n}: Tell me of the sea."))
            late = replace(critical, command=(*critical.command, "--after", "3"))
            crowd = numbered.start(clients=1, requests=crowd_size, max_tokens=CROWD_TOKENS, first=0)
            (record,) = late.load(clients=1, requests=1, max_tokens=[16])
            lows = run_load(crowd)
            again = run_load(numbered.start(clients=1, requests=crowd_size, max_tokens=CROWD_TOKENS, first=0))
            on_slots = sum(low.pieces[0] < record.sent < (low.ended or 0) for low in lows)
            if on_slots < LEAST_BUSY:
                raise BenchError(f"{on_slots} low jobs were on slots when the critical request came: not a busy daemon")
            idle.append(1000 * (alone.pieces[0] - alone.sent))
            busy.append(1000 * (record.pieces[0] - record.sent))
            parked.append(float(on_slots))
            changed.append(float(sum(one.digest != two.digest for one, two in zip(lows, again, strict=True))))
    scenario = f"A critical request beside 8 busy slots and {WAITING} waiting low jobs"
    return [
        Figure(
            scenario=scenario,
            name="time to first token",
            unit="ms",
            values={"busy": busy, "idle daemon": idle},
            goals=[Goal(2.0, "at most", "idle daemon")],
        ).conclude(),
        Figure(
            scenario=scenario, name="low jobs on slots when it came", unit="jobs", values={"busy": parked}
        ).conclude(),
        Figure(
            scenario=scenario,
            name="low jobs whose text differs from an undisturbed run",
            unit="jobs",
            values={"busy": changed},
            goals=[Goal(0, "at most")],
        ).conclude(),
    ]


def neighbour(peers: Peers, settings: Settings) -> list[Figure]:
    """One busy-looping program beside four clients: with threads that adapt, with one thread, and the peer."""
    rates: dict[str, list[float]] = {}
    free = replace(settings, threads=0)
    with ExitStack() as stack:
        enter = stack.enter_context
        model = [str(peers.model), "--slots", "8"]
        adaptive = ours(enter(granville([*model, *free.driver_flags])))
        one = replace(settings, threads=1)
        pinned = ours(enter(granville([*model, *one.driver_flags], "granville-1-thread")), name="one pinned thread")
        other = peer(enter(_peer(peers, settings, slots=8, name="llama-server")), "--cache-prompt", name=PEER)
        for subject in (adaptive, pinned, other):
            subject.load(clients=4, requests=4, max_tokens=[8])
        course = _course(adaptive)
        for number in range(settings.rounds):
            rates.setdefault("quiet", []).append(_rate(adaptive, settings))
            for subject in turn([adaptive, pinned, other], number):
                with _busy_loop():
                    time.sleep(0.2)
                    _warm(subject, SETTLE_S)
                    rates.setdefault(subject.name, []).append(_rate(subject, settings))
    figure = Figure(
        scenario="One busy program beside four clients",
        name="throughput",
        unit="tokens/s",
        values={name: rates[name] for name in ("granville", "quiet", "one pinned thread", PEER)},
        goals=[Goal(0.42, of="quiet"), Goal(0.9, of="one pinned thread"), Goal(2.0, of=PEER)],
        note=f"Measured after {SETTLE_S:g} s of load beside the busy program. *quiet* is ours without it.",
        samples=course,
    )
    return [figure.conclude()]


def _course(subject: Subject) -> dict[str, list[float]]:
    """Threads in use and tokens a second over time, while a busy program comes (at 0) and goes (at `ended`)."""
    process = subject.start(clients=4, requests=4 * COURSE_REQUESTS, max_tokens=[STREAM_TOKENS])
    time.sleep(COURSE_S)
    with watch_threads(subject.server.address) as seen:
        time.sleep(COURSE_S)
        with _busy_loop():
            began = time.monotonic()
            time.sleep(2 * COURSE_S)
        ended = time.monotonic()
        time.sleep(COURSE_S)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=STOP_S)
    return {
        "seconds": [sample.at - began for sample in seen],
        "threads": [float(sample.threads) for sample in seen],
        "tokens_per_s": [sample.tokens_per_s for sample in seen],
        "ended": [ended - began],
    }


def _rate(subject: Subject, settings: Settings) -> float:
    records = subject.load(clients=4, requests=4 * settings.requests_per_client, max_tokens=[settings.max_tokens])
    return summarise(records).tokens_per_s


def _warm(subject: Subject, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        subject.load(clients=4, requests=4, max_tokens=[16])


@contextmanager
def _busy_loop() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def _both(peers: Peers, settings: Settings, slots: int) -> Iterator[list[Subject]]:
    """Ours and the peer at its own defaults, loaded and warm."""
    with ExitStack() as stack:
        first = stack.enter_context(granville([str(peers.model), "--slots", str(slots), *settings.driver_flags]))
        second = stack.enter_context(_peer(peers, settings, slots=slots, name="llama-server"))
        subjects = [ours(first), peer(second, "--cache-prompt", name=PEER)]
        for subject in subjects:
            subject.load(clients=slots, requests=slots, max_tokens=[8])
        yield subjects


def _peer(peers: Peers, settings: Settings, *, slots: int, name: str) -> AbstractContextManager[Child]:
    return llama_server(
        peers,
        slots=slots,
        context_size=settings.context_size,
        threads=settings.threads,
        arguments=settings.peer_flags,
        name=name,
    )
