"""What is rare and must not cost more than itself: texts that no file can hold, races for a run's id, full disks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from granville.crucible.journal.runs import Journal
from granville.crucible.journal.writer import JournalFailed, Writer
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
