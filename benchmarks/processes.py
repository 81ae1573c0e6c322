"""The servers that are measured, as child processes: start, wait until ready, stop, and what /proc says of them."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import ROOT, Peers

READY_S = 120.0
STOP_S = 30.0
LOGS = ROOT / "build" / "bench"


class BenchError(Exception):
    """A benchmark cannot be run or its result cannot be trusted; the message says why."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running server: what its clients connect to, and how long it took from exec until ready."""

    process: subprocess.Popen[bytes]
    address: str
    ready_s: float

    @property
    def tree(self) -> list[int]:
        """Its process id and those of all its descendants."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found.extend(int(child) for child in (task / "children").read_text().split())
        return found

    def memory_bytes(self) -> tuple[int, int]:
        """(RSS, PSS) over the whole tree. RSS counts a page that two processes share twice, PSS once."""
        rss = pss = 0
        for pid in self.tree:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name == "Rss":
                    rss += int(value.split()[0]) << 10
                elif name == "Pss":
                    pss += int(value.split()[0]) << 10
        return rss, pss

    def cpu_s(self) -> float:
        """CPU seconds used so far by the whole tree."""
        ticks = 0
        for pid in self.tree:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime, fields 14 and 15 of proc(5)
        return ticks / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Watch:
    """Whether a measurement was alone on the machine: CPU seconds by servers that should have been idle, and by
    programs that are not ours. Kept over all the loads that ran under it."""

    servers: Sequence[Child]
    seconds: float = 0.0
    idle_s: float = 0.0
    foreign_s: float = 0.0

    @contextlib.contextmanager
    def over(self, active: Child | None) -> Iterator[None]:
        """Watch one load on `active`; the processes it starts must have been waited for when it ends."""
        began, before = time.monotonic(), [server.cpu_s() for server in self.servers]
        busy, own = _busy_s(), _own_cpu_s()
        yield
        used = [server.cpu_s() - earlier for server, earlier in zip(self.servers, before, strict=True)]
        self.foreign_s += max(0.0, _busy_s() - busy - (_own_cpu_s() - own) - sum(used))
        self.idle_s += sum(s for server, s in zip(self.servers, used, strict=True) if server is not active)
        self.seconds += time.monotonic() - began


def _busy_s() -> float:
    """CPU seconds that all cores were not idle (stolen ones too), the first line of /proc/stat."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (
        int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_cpu_s() -> float:
    """This process, and those of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@contextlib.contextmanager
def granville(arguments: Sequence[str], name: str = "granville", *, python: str = sys.executable) -> Iterator[Child]:
    """`granville serve ARGUMENTS` on a socket of its own, ready when it says so on its standard output: the Granville
    that `python` has. It finds nothing of another run, unless a folder for states is among the arguments."""
    with tempfile.TemporaryDirectory(prefix="granville-bench-") as folder:
        path = os.path.join(folder, "kernel.sock")
        command = [python, "-P", "-m", "granville", "serve", *arguments, "-s", path, "-p", "0"]
        began = time.monotonic()
        environment = {"GRANVILLE_HOME": folder}
        with _child(command, name, stdout=subprocess.PIPE, environment=environment) as process:
            _await_line(process, name)
            yield Child(process, path, time.monotonic() - began)


@contextlib.contextmanager
def llama_server(
    peers: Peers, *, slots: int, context_size: int, threads: int, arguments: Sequence[str], name: str
) -> Iterator[Child]:
    """The peer on a free loopback port, ready when /health answers 200. `context_size` is a slot's."""
    port = _free_port()
    command = [str(peers.server), "--model", str(peers.model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--parallel", str(slots), "--ctx-size", str(slots * context_size)]
    command += ["--threads", str(threads), "--threads-batch", str(threads), "--no-ui", *arguments]
    began = time.monotonic()
    with _child(command, name, environment=peers.environment) as process:
        _await_health(process, f"http://127.0.0.1:{port}/health", name)
        yield Child(process, str(port), time.monotonic() - began)


@contextlib.contextmanager
def _child(
    command: Sequence[str],
    name: str,
    *,
    stdout: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process whose log goes to build/bench/NAME.log; ended by SIGTERM, and by SIGKILL if it does not."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with log_of(name).open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log if stdout is None else stdout, stderr=log, env={**os.environ, **(environment or {})}
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise BenchError(f"{name} did not end within {STOP_S:g} s of SIGTERM") from None
            finally:
                if process.stdout is not None:
                    process.stdout.close()


def log_of(name: str) -> Path:
    return LOGS / f"{name}.log"


def _await_line(process: subprocess.Popen[bytes], name: str) -> None:
    """Wait for one line on the child's standard output."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(READY_S):
            raise BenchError(f"{name} said nothing for {READY_S:g} s; see {log_of(name)}")
        if not process.stdout.readline():
            raise BenchError(f"{name} ended before it was ready; see {log_of(name)}")


def _await_health(process: subprocess.Popen[bytes], url: str, name: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"{name} ended with {process.returncode} before it was ready; see {log_of(name)}")
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.01)
    raise BenchError(f"{name} was not ready after {READY_S:g} s; see {log_of(name)}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
