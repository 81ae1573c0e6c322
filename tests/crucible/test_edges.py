"""What is rare and must not cost more than itself: texts that no file can hold, races for a run's id, full disks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from granville.crucible.journal.runs import Journal
from granville.crucible.journal.statements import set_run
from granville.crucible.journal.writer import JournalFailed, Writer
from granville.crucible.running.run import Run
from granville.crucible.running.runner import open_runner
from granville.crucible.tools.interface import Call, ToolFailed
from granville.crucible.workflow.model import Step
from tests.crucible.rig import Place, Tools, at_once, runner, tool, workflow


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    with Journal.open(tmp_path / "runs.db") as journal:
        yield journal


async def echo(arguments: Mapping[str, Any], call: Call) -> Any:
    await trio.lowlevel.checkpoint()
    return arguments.get("value")


async def hang(arguments: Mapping[str, Any], call: Call) -> Any:
    await trio.sleep_forever()


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not true():  # noqa: ASYNC110
            await trio.sleep(0.01)


ECHO = workflow(Step(id="a", tool="echo", with_={"value": 1}))
TOOLS = (tool("echo", echo), tool("hang", hang))


async def test_an_error_with_half_characters_costs_its_run_and_no_other(journal: Journal) -> None:
    async def half(arguments: Mapping[str, Any], call: Call) -> Any:
        raise ToolFailed("no file \udcff here")

    async with runner(journal, Place(None), tools=Tools(*TOOLS, tool("half", half))) as running:
        with trio.fail_after(60):
            failed = await (await running.start(workflow(Step(id="a", tool="half")), {})).finish()
            other = await (await running.start(ECHO, {})).finish()
    assert (failed.state, failed.error) == ("failed", "a: no file ? here")
    assert other.state == "finished"


async def test_what_the_journal_cannot_take_is_told_to_whoever_waits(journal: Journal) -> None:
    writer = Writer(journal, at_once)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        with pytest.raises(JournalFailed):
            await writer.commit(("SELECT ?", ("\udcff",)))
        await writer.commit(("SELECT ?", ("goes on",)))
        writer.close()


class Held:
    """A hop that holds the first call of a function until it is let go."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reached, self.go_on = trio.Event(), trio.Event()

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        if function.__name__ == self.name and not self.reached.is_set():
            self.reached.set()
            await self.go_on.wait()
        return await at_once(function, *args)


async def test_a_run_that_has_come_and_gone_between_is_the_same_run(journal: Journal) -> None:
    hop = Held("take")
    async with open_runner(journal=journal, toolbox_for=Tools(*TOOLS).open, hop=hop, dial=Place(None).dial) as running:
        late: list[Run] = []

        async def start() -> None:
            late.append(await running.start(ECHO, {}, run_id="twice"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            await hop.reached.wait()
            bystander = await running.start(workflow(Step(id="a", tool="hang")), {})
            await (await running.start(ECHO, {}, run_id="twice")).finish()
            hop.go_on.set()
        assert (await late[0].finish()).outputs == {"a": 1}
        assert not bystander.is_done


async def test_a_run_that_has_failed_meanwhile_is_not_cancelled(journal: Journal) -> None:
    async def fails(arguments: Mapping[str, Any], call: Call) -> Any:
        await trio.lowlevel.checkpoint()
        raise ToolFailed("no")

    hop = Held("nothing")
    tools = Tools(*TOOLS, tool("fails", fails))
    async with open_runner(journal=journal, toolbox_for=tools.open, hop=hop, dial=Place(None).dial) as running:
        run = await running.start(workflow(Step(id="a", tool="fails")), {}, run_id="r")
        await run.finish()
        await trio.testing.wait_all_tasks_blocked()
        journal.apply([set_run("r", "running", 1.0)])
        hop.name = "take"
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                assert (await running.cancel("r")).state == "failed"

            nursery.start_soon(cancel)
            await hop.reached.wait()
            journal.apply([set_run("r", "failed", 2.0, error="a: no", error_code="tool_failed", step="a")])
            hop.go_on.set()
    assert journal.run("r").state == "failed"
