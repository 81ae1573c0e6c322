"""Crucible beside the bare requests that it makes: what a step costs, and what becomes of 100 runs that are killed.

    .venv/bin/python benchmarks/crucible.py [--rounds 5] [--json build/bench/crucible.json]

Granville answers at once (a pretended driver), so what is measured is Crucible: templates, the journal, the loop.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated

import cyclopts
import trio

from benchmarks.kernel import FAKE_DRIVER
from benchmarks.peers import ROOT
from benchmarks.processes import BenchError, Child, granville
from benchmarks.report import Figure, Goal, publish, results_here
from granville.client import Request, connect, new_id
from granville.crucible.journal.runs import Journal
from granville.crucible.running.runner import Runner, open_runner
from granville.crucible.workflow.model import ForEach, Input, Limits, Step, Workflow

STEPS = 300
RUNS = 100
STEP_GOAL_MS = 2.0
KILLS = 8
LIFE_S = (0.1, 0.4)
"""How long a process may go on with its runs before it is killed."""
MAX_LIVES = 60
TEXT = "what is a kernel"
Positive = Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1))]
app = cyclopts.App(version_flags=[])


def listed(parallel: int) -> Workflow:
    """A step for each item of a list."""
    step = Step(
        id="each",
        model_type="inference",
        input="{{ item }} " + TEXT,
        for_each=ForEach(items="items", parallel=parallel),
    )
    return Workflow(name="listed", inputs={"items": Input(type="list")}, steps=(step,), limits=Limits(steps=10**6))


def chain(length: int = 5) -> Workflow:
    """Each step reads the one before it."""
    steps = [
        Step(id=f"s{n}", model_type="inference", input=f"{{{{ s{n - 1} }}}} {n}" if n else "{{ seed }} 0")
        for n in range(length)
    ]
    return Workflow(name="chain", inputs={"seed": Input(type="text")}, steps=tuple(steps))


@contextmanager
def answering(*options: str) -> Iterator[Child]:
    """Granville with a driver that answers at once."""
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(b"no weights: the driver does not look")
        file.flush()
        arguments = [file.name, "-d", FAKE_DRIVER, "--slots", "16", "--no-isolate", *options]
        with granville(arguments, "granville-fake") as server:
            yield server


@asynccontextmanager
async def runner_at(address: str, folder: Path, *, served: bool = False) -> AsyncIterator[Runner]:
    with Journal.open(folder / "runs.db") as journal:
        async with open_runner(address=address, journal=journal, served=served) as runner:
            yield runner


async def bare(address: str, count: int) -> float:
    """Milliseconds a request, one after the other on one connection."""
    async with connect(address) as client:
        began = time.perf_counter()
        for number in range(count):
            await client.submit(Request(id=new_id(), text=f"{number} {TEXT}"))
        return 1000 * (time.perf_counter() - began) / count


async def in_steps(address: str, folder: Path, count: int, parallel: int) -> float:
    """Milliseconds a step of one run."""
    async with runner_at(address, folder) as runner:
        await (await runner.start(listed(parallel), {"items": [0]})).finish()
        began = time.perf_counter()
        record = await (await runner.start(listed(parallel), {"items": list(range(count))})).finish()
        took = 1000 * (time.perf_counter() - began) / count
    assert record.state == "finished", record.error
    return took


def overhead(rounds: int) -> list[Figure]:
    alone: list[float] = []
    steps: list[float] = []
    beside: list[float] = []
    with answering() as server, tempfile.TemporaryDirectory(prefix="granville-bench-") as folder:
        trio.run(bare, server.address, STEPS)
        for _ in range(rounds):
            alone.append(trio.run(bare, server.address, STEPS))
            steps.append(trio.run(in_steps, server.address, Path(folder), STEPS, 1))
            beside.append(trio.run(in_steps, server.address, Path(folder), STEPS, 16))
    scenario = "A step beside the bare request"
    return [
        Figure(
            scenario=scenario,
            name="what a step adds, one after the other",
            unit="ms",
            values={"crucible": [step - one for step, one in zip(steps, alone, strict=True)]},
            goals=[Goal(STEP_GOAL_MS, "at most")],
        ).conclude(),
        Figure(
            scenario=scenario,
            name="time a step",
            unit="ms",
            values={"one after the other": steps, "16 side by side": beside, "the bare request": alone},
        ).conclude(),
    ]


def killed(address: str, folder: Path, runs: int, kills: int, seed: int = 0) -> tuple[float, int]:
    """(seconds, kills) until so many runs of five steps have ended, whose process is killed while they go on."""
    chance = random.Random(seed)
    began = time.perf_counter()
    for life in range(MAX_LIVES):
        with living(address, folder, 0 if life else runs) as process:
            try:
                process.wait(chance.uniform(*LIFE_S) if life < kills else None)
            except subprocess.TimeoutExpired:
                continue
        if process.returncode == 0:
            return time.perf_counter() - began, life
    raise BenchError(f"{runs} runs had not ended after {MAX_LIVES} lives of their process")


@contextmanager
def living(address: str, folder: Path, runs: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that takes up what is left in a folder's journal and has started `runs` more; killed with SIGKILL at
    the end if it has not ended."""
    command = [sys.executable, __file__, "live", address, str(folder), "--runs", str(runs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise BenchError("the process that is to execute runs has ended before it did")
        try:
            yield process
        finally:
            process.kill()


def ended_once(folder: Path, runs: int) -> int:
    """How many of so many runs have finished, each step once. Raises BenchError when one came to another end."""
    with Journal.open(folder / "runs.db") as journal:
        records = journal.runs(limit=10 * runs)
        for listed_record in records:
            record = journal.run(listed_record.id)
            keys = [(step.key, step.state, step.ended) for step in journal.steps(record.id)]
            seed = (record.inputs or {})["seed"]
            right = {"s4": f"{seed} 0 1 2 3 4"}
            if keys != [(f"s{n}", "finished", True) for n in range(5)] or record.outputs != right:
                raise BenchError(f"{record.id} has {record.state}: {record.error or record.outputs}")
    if len(records) != runs:
        raise BenchError(f"{len(records)} runs are in the journal, and {runs} were started")
    return sum(record.state == "finished" for record in records)


@app.command
def live(address: str, folder: Path, *, runs: int = 0) -> None:
    """One life of a process that executes runs: it says `ready` when all are in the journal, and ends when they do."""

    async def main() -> None:
        async with runner_at(address, folder, served=True) as runner:
            left = await runner.resume_all()
            left += [await runner.start(chain(), {"seed": f"run {n}"}) for n in range(runs)]
            print("ready", flush=True)
            for run in left:
                await run.finish()

    trio.run(main)


def survival(rounds: int) -> list[Figure]:
    seconds: list[float] = []
    undisturbed: list[float] = []
    ended: list[float] = []
    with answering("--driver-config", "decode_s=0.02") as server:
        for number in range(rounds):
            for kills, times in ((0, undisturbed), (KILLS, seconds)):
                with tempfile.TemporaryDirectory(prefix="granville-bench-") as folder:
                    took, done = killed(server.address, Path(folder), RUNS, kills, number)
                    times.append(took)
                    if kills:
                        ended.append(ended_once(Path(folder), RUNS))
                        if done < kills:
                            raise BenchError(f"all had ended after {done} kills: let the driver be slower")
    scenario = f"{RUNS} runs of 5 steps, killed {KILLS} times with kill -9"
    return [
        Figure(
            scenario=scenario,
            name="runs that have ended, once and as they should",
            unit="runs",
            values={"crucible": ended},
            goals=[Goal(RUNS, "at least")],
        ).conclude(),
        Figure(
            scenario=scenario,
            name="until the last has ended",
            unit="s",
            values={"killed in between": seconds, "undisturbed": undisturbed},
        ).conclude(),
    ]


@app.default
def measure(*, rounds: Positive = 5, json: Path = ROOT / "build" / "bench" / "crucible.json") -> None:
    """Measure, print a table, and write it as JSON.

    Parameters
    ----------
    rounds
        How often each is measured.
    json
        Where the figures go.
    """
    figures = [*overhead(rounds), *survival(min(rounds, 3))]
    publish(results_here(figures, rounds), json)


if __name__ == "__main__":
    app()
