"""A crash at every line: whatever the journal holds, the run goes on from there, comes to the same end, and runs no
finished step again."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from granville.crucible.journal.records import RunRecord
from granville.crucible.journal.runs import Journal
from granville.crucible.journal.statements import Statement
from granville.crucible.running.events import RunEvent, StepEvent
from granville.crucible.running.failures import Interrupted
from granville.crucible.running.keys import request_id
from granville.crucible.tools.interface import Call, ToolFailed
from granville.crucible.workflow.model import ForEach, Input, Instead, Limits, Repeat, Step, Workflow
from granville.errors import Conflict
from granville.testing.kernel import running_kernel
from tests.crucible.rig import Place, Tools, runner, says, tool, workflow

RUN = "r-crashes"


async def shout(arguments: Mapping[str, Any], call: Call) -> Any:
    await trio.sleep(0.3)
    return str(arguments["text"]).upper()


async def refuse(arguments: Mapping[str, Any], call: Call) -> Any:
    await trio.sleep(0.1)
    raise ToolFailed("no, thank you")


def toolbox() -> Tools:
    return Tools(tool("shout", shout), tool("post", shout, once=True), tool("refuse", refuse))


INNER = Workflow(
    name="inner",
    inputs={"text": Input()},
    steps=(says("first", "in {{ text }}", session="aside"), says("second", "and {{ first }}", session="aside")),
    outputs={"said": "second"},
)
WHOLE = workflow(
    says("greet", "hello {{ who }}", session="talk"),
    says("each", "{{ item }} {{ greet }}", for_each=ForEach(items="[1, 2, 3]", parallel=2)),
    Step(id="loud", tool="shout", with_={"text": "{{ each | join(' ') }}"}, should_run="each | length == 3"),
    says("never", "x y", should_run="loud is none"),
    Step(id="refused", tool="refuse", on_error=Instead(use="refused")),
    Step(
        id="loop",
        repeat=Repeat(until="note | length > 12", max=9, start={"note": "n"}),
        steps=(
            says("think", "{{ note }} r{{ round }}", output="note", session="talk"),
            Step(id="act", tool="shout", with_={"text": "{{ note }}"}),
        ),
        result="{'note': note, 'act': act}",
    ),
    Step(id="sub", workflow=INNER, with_={"text": "{{ greet }}"}),
    Step(
        id="boxes",
        for_each=ForEach(items="['a', 'b']", name="letter"),
        steps=(says("box", "{{ letter }} {{ index }}"), Step(id="loudly", tool="shout", with_={"text": "{{ box }}"})),
    ),
    says("bye", "bye {{ loud }} {{ loop.act }}", session="talk"),
    inputs={"who": Input(type="text")},
    outputs={
        "bye": "bye", "loop": "loop", "sub": "sub.said", "boxes": "boxes", "never": "never", "refused": "refused",
        "tries": "steps.refused.attempts",
    },
)  # fmt: skip


class Copied(Journal):
    """A journal of which a copy is kept as it was after each commit."""

    copies: list[Path]

    def apply(self, statements: Sequence[Statement]) -> None:
        super().apply(statements)
        copy = self.path.with_name(f"copy-{len(self.copies)}.db")
        with closing(sqlite3.connect(copy)) as database:
            self._database.backup(database)
        self.copies.append(copy)


async def run_and_copy(folder: Path, flow: Workflow, inputs: Mapping[str, Any]) -> tuple[RunRecord, list[Path]]:
    """The record of a whole run, and the journal as it was after each commit of it."""
    with Copied.open(folder / "runs.db") as journal:
        assert isinstance(journal, Copied)
        journal.copies = []
        async with (
            running_kernel(slots=2, decode_s=0.1) as kernel,
            runner(journal, Place(kernel), tools=toolbox()) as running,
        ):
            record = await (await running.start(flow, inputs, run_id=RUN)).finish()
        return record, journal.copies


def leaves(journal: Journal) -> dict[str, str]:
    """Keys of model and tool steps that have ended, by their kind."""
    return {step.key: step.kind for step in journal.steps(RUN) if step.ended and step.kind in ("inference", "tool")}


async def resumed(path: Path, tools: Tools, *, retry: str | None = None) -> tuple[RunRecord, list[str]]:
    """The end of a run taken up from a journal, and the keys of the leaves that ran for that."""
    with Journal.open(path) as journal:
        before = leaves(journal)
        async with running_kernel(slots=2, decode_s=0.1) as kernel:
            place = Place(kernel)
            async with runner(journal, place, tools=tools) as running:
                record = await (await running.resume(RUN, retry=retry)).finish()
        after = leaves(journal)
    by_id = {request_id(RUN, key): key for key in after}
    ran = [by_id[request.id] for request in place.requests] + [call.step for _, _, call in tools.calls]
    assert not set(ran) & before.keys(), "a finished step was run again"
    assert max(Counter(ran).values(), default=0) <= 1
    expected = {key for key in after if key != "never"} - before.keys()
    assert set(ran) == expected
    return record, ran


async def test_from_any_commit_on_the_run_comes_to_the_same_end(tmp_path: Path) -> None:
    record, copies = await run_and_copy(tmp_path, WHOLE, {"who": "you"})
    assert record.state == "finished", record.error
    assert len(copies) > 20
    for number, copy in enumerate(copies):
        again, ran = await resumed(copy, toolbox())
        assert again.outputs == record.outputs, copy
        assert (again.state, again.steps_done) == ("finished", record.steps_done)
        assert number < len(copies) - 1 or not ran


@pytest.mark.parametrize("seed", range(6))
async def test_crash_upon_crash(tmp_path: Path, seed: int) -> None:
    """Runs made by a seed, each crashed several times at commits chosen by it."""
    chance = random.Random(seed)
    flow = made_by(chance)
    record, copies = await run_and_copy(tmp_path, flow, {})
    assert record.state == "finished", record.error
    crashes = 0
    while len(copies) > 1 and crashes < 4:
        crashes += 1
        folder = tmp_path / f"life-{crashes}"
        folder.mkdir()
        copy = copies[chance.randrange(len(copies) - 1)]
        shutil.copy(copy, folder / "runs.db")
        with Copied.open(folder / "runs.db") as journal:
            assert isinstance(journal, Copied)
            journal.copies = copies = []
            async with (
                running_kernel(slots=2, decode_s=0.1) as kernel,
                runner(journal, Place(kernel), tools=toolbox()) as running,
            ):
                again = await (await running.resume(RUN)).finish()
        assert again.outputs == record.outputs


def made_by(chance: random.Random, depth: int = 0) -> Workflow:
    steps: list[Step] = []
    for number in range(chance.randint(2, 5)):
        id = f"{'abcd'[depth]}{number}"
        read = f"{{{{ {chance.choice(steps).name} }}}}" if steps else "begin"
        kind = chance.choice(["says", "talks", "tool", "each", "loop", "group", "sub"])
        if kind in ("group", "sub") and depth == 2:
            kind = "tool"
        if kind == "says":
            steps.append(says(id, f"{read} {id}"))
        elif kind == "talks":
            steps.append(says(id, f"{read} {id}", session="talk"))
        elif kind == "tool":
            steps.append(
                Step(id=id, tool=chance.choice(["shout", "refuse"]), with_={"text": read}, on_error="continue")
            )
        elif kind == "each":
            each = ForEach(items=f"range({chance.randint(0, 4)}) | list", parallel=chance.randint(1, 3))
            steps.append(says(id, f"{{{{ item }}}} {read}", for_each=each))
        elif kind == "loop":
            repeat = Repeat(until=f"round == {chance.randint(0, 3)}", max=3, start={id: "start"})
            steps.append(says(id, f"{{{{ {id} }}}} again", repeat=repeat))
        elif kind == "group":
            steps.append(Step(id=id, steps=made_by(chance, depth + 1).steps))
        else:
            steps.append(Step(id=id, workflow=made_by(chance, depth + 1)))
    return workflow(*steps, outputs={step.id: step.name for step in steps})


async def test_a_call_that_is_made_once_is_not_made_again_by_itself(tmp_path: Path) -> None:
    flow = workflow(
        says("before", "a b"),
        Step(id="post", tool="post", with_={"text": "{{ before }}"}),
        says("after", "{{ post }} c"),
    )
    record, copies = await run_and_copy(tmp_path, flow, {})
    seen = set()
    for copy in copies:
        with Journal.open(copy) as journal:
            step = journal.step(RUN, "post")
        state = "not begun" if step is None else "ended" if step.ended else "begun"
        seen.add(state)
        tools = toolbox()
        if state == "begun":
            with Journal.open(copy) as journal:
                async with running_kernel() as kernel, runner(journal, Place(kernel), tools=tools) as running:
                    with pytest.raises(Interrupted, match=r"post: its call was cut short.*--retry post"):
                        await running.resume(RUN)
                    assert await running.resume_all() == []
                stands = journal.run(RUN)
                assert (stands.state, stands.step, stands.error_code) == ("interrupted", "post", "interrupted")
            assert tools.calls == []
            again, _ = await resumed(copy, tools, retry="post")
        else:
            again, _ = await resumed(copy, tools)
        assert again.outputs == record.outputs
        assert len(tools.calls) == (0 if state == "ended" else 1)
    assert seen == {"not begun", "begun", "ended"}


async def test_a_failed_run_goes_on_at_the_step_that_failed(tmp_path: Path) -> None:
    calls = 0

    async def second_time(arguments: Mapping[str, Any], call: Call) -> Any:
        nonlocal calls
        await trio.lowlevel.checkpoint()
        calls += 1
        if calls == 1:
            raise ToolFailed("not yet")
        return "now"

    flow = workflow(says("a", "one!"), Step(id="b", tool="second", needs=("a",)), says("c", "{{ a }} {{ b }}"))
    async with running_kernel() as kernel:
        place = Place(kernel)
        with Journal.open(tmp_path / "runs.db") as journal:
            async with runner(journal, place, tools=Tools(tool("second", second_time))) as running:
                record = await (await running.start(flow, {}, run_id=RUN)).finish()
                assert (record.state, record.step) == ("failed", "b")
                run = await running.resume(RUN)
                events = [event async for event in run.events()]
                assert run.record.outputs == {"c": "one! now"}
                assert await (await running.resume(RUN)).finish() == run.record
    told = [(event.step, event.state) for event in events if isinstance(event, StepEvent)]
    assert told == [("a", "finished"), ("b", "running"), ("b", "finished"), ("c", "running"), ("c", "finished")]
    assert [event.state for event in events if isinstance(event, RunEvent)] == ["running", "finished"]
    assert len(place.requests) == 2


async def test_what_a_budget_allows_is_counted_over_all_lives(tmp_path: Path) -> None:
    flow = workflow(says("a", "x!", repeat=Repeat(until="false", max=100)), limits=Limits(steps=10))
    record, copies = await run_and_copy(tmp_path, flow, {})
    assert record.error_code == "budget_exceeded"
    again, ran = await resumed(copies[-6], toolbox())
    assert again.error_code == "budget_exceeded"
    assert 0 < len(ran) <= 5


async def test_a_runs_time_goes_on_while_nobody_runs_it(tmp_path: Path) -> None:
    flow = workflow(says("a", "x " * 50), timeout_s=60)
    with Journal.open(tmp_path / "runs.db") as journal:
        async with running_kernel(decode_s=1) as kernel:
            async with runner(journal, Place(kernel)) as running:
                await running.start(flow, {}, run_id=RUN)
                await trio.sleep(20)
            assert journal.run(RUN).state == "interrupted"
            await trio.sleep(100)
            async with runner(journal, Place(kernel)) as running:
                record = await (await running.resume(RUN)).finish()
    assert (record.state, record.error_code) == ("failed", "deadline_exceeded")


@pytest.mark.parametrize("of", ["workflow", "step", "group"])
async def test_so_does_the_time_of_a_workflow_in_it_and_of_a_group(tmp_path: Path, of: str) -> None:
    slow = says("a", "x " * 50)
    inner = Workflow(name="inner", steps=(slow,), timeout_s=60 if of == "workflow" else None)
    step = Step(id="sub", workflow=inner, timeout_s=60 if of == "step" else None)
    if of == "group":
        step = Step(id="sub", steps=(slow,), timeout_s=60)
    with Journal.open(tmp_path / "runs.db") as journal:
        async with running_kernel(decode_s=1) as kernel:
            async with runner(journal, Place(kernel)) as running:
                await running.start(workflow(step), {}, run_id=RUN)
                await trio.sleep(20)
            await trio.sleep(30)
            began = trio.current_time()
            async with runner(journal, Place(kernel)) as running:
                record = await (await running.resume(RUN)).finish()
                assert (record.state, record.error_code) == ("failed", "deadline_exceeded")
                assert trio.current_time() - began == pytest.approx(10, abs=1)
                # It has failed: resumed by hand it is another attempt, which has all of its time.
                record = await (await running.resume(RUN)).finish()
    assert record.state == "finished"


async def test_a_runner_that_ends_leaves_its_runs_and_a_daemon_takes_up_its_own(tmp_path: Path) -> None:
    flow = workflow(says("a", "x y z"), says("b", "{{ a }}"))
    with Journal.open(tmp_path / "runs.db") as journal:
        async with running_kernel(decode_s=1) as kernel:
            async with runner(journal, Place(kernel), served=True) as running:
                run = await running.start(flow, {}, run_id="served")
                await trio.sleep(4)
            assert run.is_done
            assert run.record.state == "interrupted"
            assert len(kernel.desk.admission) == 0
            async with runner(journal, Place(kernel)) as running:
                await running.start(flow, {}, run_id="by-hand")
                await trio.sleep(1)
            assert {record.state for record in journal.runs()} == {"interrupted"}
            assert [record.id for record in journal.runs(state="interrupted", limit=1)] == ["by-hand"]
            place = Place(kernel)
            async with runner(journal, place, served=True) as running:
                (run,) = await running.resume_all()
                assert run.id == "served"
                assert (await run.finish()).outputs == {"b": "x y z"}
                assert len(place.requests) == 1
                assert (await running.cancel("by-hand")).state == "cancelled"


async def test_a_run_is_executed_by_one_process_at_a_time(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "runs.db") as journal, Journal.open(tmp_path / "runs.db") as second:
        async with (
            running_kernel(decode_s=1) as kernel,
            runner(journal, Place(kernel)) as running,
            runner(second, Place(kernel)) as other,
        ):
            run = await running.start(workflow(says("a", "x y z")), {}, run_id=RUN)
            await trio.sleep(0.5)
            assert second.run(RUN).state == "running"
            for attempt in (other.resume, other.cancel):
                with pytest.raises(Conflict, match=r"process \d+ executes this run"):
                    await attempt(RUN)
            assert (await run.finish()).state == "finished"
            assert (await other.cancel(RUN)).state == "finished"
        assert list((tmp_path / "runs.db-locks").iterdir()) == []


async def test_a_journal_that_cannot_be_written_interrupts_its_runs(tmp_path: Path) -> None:
    class Full(Journal):
        is_full = False

        def apply(self, statements: Sequence[Statement]) -> None:
            if self.is_full:
                raise sqlite3.OperationalError("database or disk is full")
            super().apply(statements)

    with Full.open(tmp_path / "runs.db") as journal:
        assert isinstance(journal, Full)
        async with running_kernel(decode_s=1) as kernel:
            place = Place(kernel)
            async with runner(journal, place) as running:
                flow = workflow(says("a", "x y z", on_error="continue"), says("b", "{{ a }}!"))
                run = await running.start(flow, {}, run_id=RUN)
                await trio.sleep(1)
                journal.is_full = True
                record = await run.finish()
                assert (record.state, record.error_code) == ("interrupted", "journal_failed")
                assert "disk is full" in str(record.error)
                journal.is_full = False
                assert (await (await running.resume(RUN)).finish()).outputs == {"b": "x y z!"}
