"""The raw engines beside the servers: llama.cpp's batched bench, and our driver without the kernel.

`drive` runs as a process of its own (`python -m benchmarks.engine …`), for a model keeps threads and memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cyclopts
import msgspec
from msgspec import Struct

from benchmarks.peers import ROOT, Peers
from benchmarks.processes import BenchError
from benchmarks.settings import Settings
from granville.hosting.interface import Failed, Finished, Generate, Message, Model, ModelSpec, Sampling
from granville.testing.load import DEFAULT_TEXT

TIMEOUT_S = 300.0


class Lot(Struct, frozen=True):
    """Sequences that began together."""

    tokens: int
    seconds: float
    prompt_tokens: int


class Alone(Struct, frozen=True):
    """Our driver in a process of its own; its load has llama.cpp's import in it."""

    load_s: float
    lots: list[Lot]


class Row(Struct, frozen=True):
    """A line of the batched bench: `pl` sequences, `pp` prompt and `tg` decoded tokens each."""

    pp: int
    tg: int
    pl: int
    t_pp: float
    t_tg: float


def batched_bench(peers: Peers, settings: Settings, sequences: int, prompt_tokens: int) -> float:
    """Tokens a second over a whole lot of equal sequences. The first token of an answer comes out of the
    prefill, so `max_tokens` of them take one decode less; nothing is sampled here and no text is made."""
    command = [str(peers.batched_bench), "-m", str(peers.model), "--output-format", "jsonl"]
    command += ["-c", str(settings.context_size * sequences), "-t", str(settings.threads)]
    command += ["-tb", str(settings.threads), "-npp", str(prompt_tokens), "-npl", str(sequences)]
    command += ["-ntg", str(settings.max_tokens - 1), "-fa", "off", *settings.peer_flags]
    output = _run(command, peers.environment)
    rows = [msgspec.json.decode(line, type=Row) for line in output.splitlines() if line.startswith(b"{")]
    if len(rows) != 1:
        raise BenchError(f"llama-batched-bench printed {len(rows)} results, not one: {output[-500:]!r}")
    return sequences * settings.max_tokens / (rows[0].t_pp + rows[0].t_tg)


def driver_alone(peers: Peers, settings: Settings, sequences: int, slots: int, lots: int) -> Alone:
    """Our engine over the same prompts, called as the kernel calls it, in a process with nothing else."""
    command = [sys.executable, "-m", "benchmarks.engine", "--model", str(peers.model)]
    command += ["--slots", str(slots), "--sequences", str(sequences), "--lots", str(lots)]
    command += ["--threads", str(settings.threads), "--context-size", str(settings.context_size)]
    command += ["--max-tokens", str(settings.max_tokens), "--repack" if settings.repack else "--no-repack"]
    return msgspec.json.decode(_run(command, {}), type=Alone)


def _run(command: list[str], environment: dict[str, str]) -> bytes:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr[-800:].decode()}")
    return done.stdout


@contextmanager
def loaded(spec: ModelSpec) -> Iterator[Model]:
    from granville_llama import LlamaDriver

    model = LlamaDriver().load(spec)
    try:
        yield model
    finally:
        model.close()


def run_lot(model: Model, requests: list[Generate]) -> Lot:
    """Submit all at once and step until all have ended. Raises BenchError when one fails."""
    began = time.perf_counter()
    for request in requests:
        model.submit(request)
    left, tokens, prompt_tokens = len(requests), 0, 0
    while left:
        for event in model.step(None):
            if isinstance(event, Failed):
                raise BenchError(f"the driver failed a job: {event.error}: {event.message}")
            if isinstance(event, Finished):
                left -= 1
                tokens += event.usage.completion_tokens
                prompt_tokens = event.usage.prompt_tokens
    return Lot(tokens, time.perf_counter() - began, prompt_tokens)


app = cyclopts.App(version_flags=[])


@app.default
def drive(
    *,
    model: Path,
    sequences: int,
    slots: int = 8,
    lots: int = 1,
    threads: int = 2,
    context_size: int = 1024,
    max_tokens: int = 64,
    repack: bool = True,
) -> None:
    """Run lots of equal sequences through the driver and print tokens and seconds of each as JSON."""
    spec = ModelSpec(path=model, slots=slots, context_size=context_size, threads=threads, options={"repack": repack})
    began = time.perf_counter()
    with loaded(spec) as engine:
        load_s = time.perf_counter() - began
        run_lot(engine, _requests("warm", 1, 8))
        results = [run_lot(engine, _requests(str(lot), sequences, max_tokens)) for lot in range(lots)]
    print(msgspec.json.encode(Alone(load_s, results)).decode())


def _requests(name: str, count: int, max_tokens: int) -> list[Generate]:
    return [
        Generate(
            id=f"{name}-{number}",
            messages=(Message("user", DEFAULT_TEXT.replace("{n}", f"{number:06d}")),),
            max_tokens=max_tokens,
            sampling=Sampling(temperature=0.0),
        )
        for number in range(count)
    ]


if __name__ == "__main__":
    app()
