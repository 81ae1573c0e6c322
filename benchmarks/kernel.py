"""The kernel alone: a driver that answers at once, through the same driver thread, beside a bare Trio echo."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from benchmarks.clients import Subject, ours
from benchmarks.peers import ROOT
from benchmarks.processes import BenchError, granville
from benchmarks.report import Figure, Goal
from benchmarks.settings import Settings
from granville.testing.latency import summarise

FAKE_DRIVER = "granville.testing.fake:FakeDriver"
ECHO = "bare echo"
LATENCY_REQUESTS = 2_000
RATE_REQUESTS = 8_000
GOALS = {4: 3_000.0, 16: 6_000.0}
ACK_GOAL_MS = 0.25
TIMEOUT_S = 120.0


class Echoed(Struct, frozen=True):
    per_s: float
    p50_ms: float


def kernel(settings: Settings) -> list[Figure]:
    """ACK latency at one connection, and requests a second with their results at four and sixteen."""
    scenario = "The kernel with a driver that answers at once"
    acks: list[float] = []
    echo_ms: list[float] = []
    cpu_us: dict[int, list[float]] = {connections: [] for connections in GOALS}
    rates: dict[int, list[float]] = {connections: [] for connections in GOALS}
    echo_rates: dict[int, list[float]] = {connections: [] for connections in GOALS}
    with tempfile.NamedTemporaryFile(suffix=".model") as file, _echo_server() as echo:
        file.write(b"no weights: the driver does not look")
        file.flush()
        arguments = [file.name, "-d", FAKE_DRIVER, "--slots", "16", "--no-isolate"]
        with granville(arguments, "granville-fake") as server:
            subject = ours(server, "--no-stream", "--text", "request {n}")
            _summary(subject, 1, 100)
            for _ in range(settings.rounds):
                acks.append(_summary(subject, 1, LATENCY_REQUESTS)[0])
                echo_ms.append(_drive(echo, 1, LATENCY_REQUESTS).p50_ms)
                for connections in GOALS:
                    before = server.cpu_s()
                    rates[connections].append(_summary(subject, connections, RATE_REQUESTS)[1])
                    cpu_us[connections].append(1e6 * (server.cpu_s() - before) / RATE_REQUESTS)
                    echo_rates[connections].append(_drive(echo, connections, RATE_REQUESTS).per_s)
    figures = [
        Figure(
            scenario=scenario,
            name="ACK p50, 1 connection",
            unit="ms",
            values={"granville": acks, ECHO: echo_ms},
            goals=[Goal(ACK_GOAL_MS, "at most")],
        )
    ]
    figures += [
        Figure(
            scenario=scenario,
            name=f"requests with their results, {connections} connections",
            unit="requests/s",
            values={"granville": rates[connections], ECHO: echo_rates[connections]},
            goals=[Goal(goal)],
        )
        for connections, goal in GOALS.items()
    ]
    figures += [
        Figure(
            scenario=scenario,
            name=f"the daemon's CPU time a request, {connections} connections",
            unit="µs",
            values={"granville": cpu_us[connections]},
        )
        for connections in GOALS
    ]
    return [figure.conclude() for figure in figures]


def _summary(subject: Subject, connections: int, requests: int) -> tuple[float, float]:
    """(ACK p50 in ms, requests a second)."""
    summary = summarise(subject.load(clients=connections, requests=requests, max_tokens=[8]))
    if summary.accepted_ms is None:
        raise BenchError("no request was acknowledged")
    return summary.accepted_ms.p50, summary.requests_per_s


@contextmanager
def _echo_server() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="granville-echo-") as folder:
        path = str(Path(folder) / "echo.sock")
        command = [sys.executable, "-m", "benchmarks.echo", "serve", path]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                if process.stdout.readline() != b"ready\n":
                    raise BenchError("the echo server did not start")
                yield path
            finally:
                process.kill()


def _drive(path: str, connections: int, messages: int) -> Echoed:
    command = [sys.executable, "-m", "benchmarks.echo", "drive", path]
    command += ["--connections", str(connections), "--messages", str(messages)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise BenchError(f"the echo client failed: {done.stderr[-500:].decode()}")
    return msgspec.json.decode(done.stdout, type=Echoed)
