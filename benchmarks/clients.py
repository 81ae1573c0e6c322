"""The load, from a process of its own: a command line in, records out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import msgspec
from msgspec import Struct

from benchmarks.peers import ROOT
from benchmarks.processes import BenchError, Child
from granville.testing.latency import Record

TIMEOUT_S = 300.0
MAX_REQUESTS = 200
"""Of a load whose prompts matter; the next one begins so much higher, so that no cache has seen its prompts."""
_unseen = count()


class Output(Struct, frozen=True):
    """What both load programs print with `--json`, as far as it is used here."""

    records: list[Record]


@dataclass(frozen=True, slots=True)
class Subject:
    """A server under a name, and the program that puts load on it."""

    name: str
    server: Child
    command: tuple[str, ...]

    def load(self, *, clients: int, requests: int, max_tokens: Sequence[int]) -> list[Record]:
        return run_load(self.start(clients=clients, requests=requests, max_tokens=max_tokens))

    def start(
        self, *, clients: int, requests: int, max_tokens: Sequence[int], first: int | None = None
    ) -> subprocess.Popen[bytes]:
        """`first` is the number of the first prompt; without it the prompts are ones that no load has had."""
        lengths = [str(length) for length in max_tokens]
        if first is None:
            first = next(_unseen) * MAX_REQUESTS
        counts = ["--clients", str(clients), "--requests", str(requests), "--first", str(first)]
        return start_load([*self.command, *counts, "--max-tokens", *lengths])


def ours(server: Child, *arguments: str, name: str = "granville") -> Subject:
    command = (sys.executable, "-m", "granville.testing.load", "-s", server.address, "--json", *arguments)
    return Subject(name, server, command)


def peer(server: Child, *arguments: str, name: str) -> Subject:
    command = (sys.executable, "-m", "benchmarks.peerclient", "--port", server.address, "--json", *arguments)
    return Subject(name, server, command)


def start_load(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "NO_COLOR": "1"}
    )


def run_load(process: subprocess.Popen[bytes]) -> list[Record]:
    """Wait for a load program and read its records. Raises BenchError when it or a request of it failed."""
    try:
        output, errors = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise BenchError(f"a load took more than {TIMEOUT_S:g} s: is the machine busy with something else?") from None
    if not output.strip():
        raise BenchError(f"a load program ended with {process.returncode}: {errors[-800:].decode()}")
    records = msgspec.json.decode(output, type=Output).records
    failed = [record.error for record in records if record.error is not None]
    if failed:
        raise BenchError(f"{len(failed)} of {len(records)} requests failed, the first with {failed[0]}")
    return records
