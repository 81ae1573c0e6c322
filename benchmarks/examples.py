"""Two of the examples, measured: what each turn of the agent reads, and how long the voice assistant takes.

    .venv/bin/python -m benchmarks.examples [--rounds 5] [--json build/bench/examples.json]

Needs the models of `make models`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import cyclopts
import msgspec
import trio

from benchmarks.peers import ROOT
from benchmarks.processes import BenchError, Child, granville
from benchmarks.report import Figure, Goal, publish, results_here
from granville.client import Client, connect
from granville.client.address import new_id
from granville.crucible.journal.records import StepRecord
from granville.crucible.journal.runs import Journal
from granville.crucible.running.runner import Runner, open_runner
from granville.crucible.tools.toolbox import toolboxes
from granville.crucible.workflow.model import Repeat, Workflow
from granville.crucible.workflow.reading import open_workflow
from granville.models.store import obtain
from granville.wire.messages import ChatMessage, Request, Result

EXAMPLES = ROOT / "examples"
CRUCIBLE = Path(sys.executable).with_name("crucible")
TURNS = 8
VOICE_GOAL = 3.0
QUESTION = "Could you please tell me what the capital of France is?"
"""About three seconds, read by piper."""
NEW_GOAL = 1.25
"""A token that ends a turn was sampled and not read, and is read with the next one."""


@asynccontextmanager
async def runner_at(server: Child, tools: tuple[str, ...] = ()) -> AsyncIterator[Runner]:
    with tempfile.TemporaryDirectory(prefix="granville-bench-") as folder:
        journal = Journal.open(Path(folder, "runs.db"))
        async with open_runner(address=server.address, journal=journal, toolbox_for=toolboxes(tools)) as runner:
            yield runner


async def finished(runner: Runner, workflow: Workflow, inputs: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Seconds that a run took, and its outputs. Raises BenchError when it failed."""
    began = time.perf_counter()
    run = await runner.start(workflow, inputs, folder=EXAMPLES)
    record = await run.finish()
    if record.outputs is None:
        raise BenchError(f"{workflow.name} has {record.state}: {record.error}")
    return time.perf_counter() - began, record.outputs


def of_turns(workflow: Workflow, turns: int) -> tuple[Workflow, dict[str, Any]]:
    """The agent with a loop that has just so many rounds, in each of which it calculates; and its inputs."""
    plan, work = workflow.steps
    assert work.repeat is not None
    bounded = msgspec.structs.replace(
        work, repeat=Repeat(until="false", max=turns, start=work.repeat.start), result="decision"
    )
    forms = workflow.inputs["forms"].default
    inputs = {"task": "What is 17 * 23?", "forms": dict.fromkeys(forms, forms["calculate"])}
    return msgspec.structs.replace(workflow, steps=(plan, bounded)), inputs


async def agent_loop(server: Child, rounds: int) -> list[Figure]:
    """What each turn reads beside what is new in it and beside the whole conversation, in tokens."""
    workflow, inputs = of_turns(open_workflow(EXAMPLES / "agent" / "workflow.yaml"), TURNS)
    read: list[float] = []
    new: list[float] = []
    whole: list[float] = []
    turns: list[StepRecord] = []
    async with runner_at(server, (str(EXAMPLES / "agent" / "tools.py"),)) as runner:
        for _ in range(rounds):
            run = await runner.start(workflow, inputs, folder=EXAMPLES)
            record = await run.finish()
            if record.state != "finished":
                raise BenchError(f"the agent has {record.state}: {record.error}")
            turns = [step for step in runner.journal.steps(run.id) if step.key.endswith(".execute")]
            usages = [turn.usage or {} for turn in turns]
            later = list(pairwise(usages))
            read.append(sum(use["prompt_tokens"] - use["cached_tokens"] for _, use in later))
            new.append(
                sum(use["prompt_tokens"] - last["prompt_tokens"] - last["completion_tokens"] for last, use in later)
            )
            whole.append(sum(use["prompt_tokens"] for _, use in later))
    if len(turns) != TURNS:
        raise BenchError(f"{len(turns)} turns, and {TURNS} were wanted")
    figure = Figure(
        scenario=f"Agent loop of {TURNS} turns",
        name="prompt tokens of turns 2 and later",
        unit="tokens",
        values={"read": read, "new in them": new, "whole conversation": whole},
        goals=[Goal(NEW_GOAL, "at most", of="new in them")],
        samples={
            "prompt": [float(turn.usage["prompt_tokens"]) for turn in turns if turn.usage],
            "read": [float(turn.usage["prompt_tokens"] - turn.usage["cached_tokens"]) for turn in turns if turn.usage],
        },
    )
    return [figure.conclude()]


async def timed(client: Client, **fields: Any) -> tuple[float, Result]:
    began = time.perf_counter()
    result = await client.submit(Request(id=new_id(), **fields))
    return time.perf_counter() - began, result


async def voice(server: Child, rounds: int) -> list[Figure]:
    """A spoken question to a spoken answer, beside the same three requests made one by one, and beside the command."""
    workflow = open_workflow(EXAMPLES / "voice-assistant" / "workflow.yaml")
    think = next(step for step in workflow.steps if step.id == "think")
    seconds: dict[str, list[float]] = {"workflow": [], "its models alone": [], "crucible run": []}
    async with connect(server.address) as client, runner_at(server) as runner:
        _, spoken = await timed(client, model_type="tts", text=QUESTION)
        audio = bytes(spoken.output)
        persona = str(workflow.inputs["persona"].default)
        await finished(runner, workflow, {"audio": audio})  # each model has worked once
        for _ in range(rounds):
            took, outputs = await finished(runner, workflow, {"audio": audio})
            seconds["workflow"].append(took)
            heard, transcript = await timed(client, model_type="stt", audio=audio)
            messages = [ChatMessage("system", persona), ChatMessage("user", transcript.text)]
            thought, answer = await timed(client, messages=messages, max_tokens=think.max_tokens or 0, temperature=0.0)
            said, _ = await timed(client, model_type="tts", text=answer.text)
            if answer.text != outputs["answer"]:
                raise BenchError("the workflow and the single requests have been given different answers")
            seconds["its models alone"].append(heard + thought + said)
            seconds["crucible run"].append(await trio.to_thread.run_sync(_command_s, server.address, audio))
    figure = Figure(
        scenario="Voice assistant: a question of about three seconds",
        name="from the question to the whole answer",
        unit="s",
        values=seconds,
        goals=[Goal(VOICE_GOAL, "at most", of="its models alone")],
        note="crucible run: the command, with its start",
    )
    return [figure.conclude()]


def _command_s(address: str, audio: bytes) -> float:
    with tempfile.TemporaryDirectory(prefix="granville-bench-") as folder:
        question = Path(folder, "question.wav")
        question.write_bytes(audio)
        command = [str(CRUCIBLE), "run", str(EXAMPLES / "voice-assistant" / "workflow.yaml"), "--audio", str(question)]
        command += ["--out", str(Path(folder, "answer.wav")), "--granville", address]
        command += ["--journal", str(Path(folder, "runs.db"))]
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - began


def main(rounds: int = 5, json: Path = ROOT / "build" / "bench" / "examples.json") -> int:
    """Measure both, print the tables, and write what was measured.

    Parameters
    ----------
    rounds
        How often each is measured; the medians are shown.
    json
        Where everything is written.
    """
    main_model, whisper, joe = (trio.run(obtain, name) for name in ("smollm2", "whisper-tiny.en", "joe"))
    figures: list[Figure] = []
    with granville(["--models", f"main:{main_model},stt:{whisper},tts:{joe}", "--slots", "4"], "examples") as server:
        for measure in (agent_loop, voice):
            figures += trio.run(measure, server, rounds)
    publish(results_here(figures, rounds), json)
    return 0


if __name__ == "__main__":
    app = cyclopts.App(default_command=main)
    sys.exit(app())
