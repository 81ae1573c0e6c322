"""What is rare and must not cost more than itself: texts that no file can hold, races for a run's id, full disks."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from granville.crucible.client import serve_crucible
from granville.crucible.daemon import deliveries as deliveries_module
from granville.crucible.daemon.connection import Connection
from granville.crucible.daemon.deliveries import Deliveries
from granville.crucible.daemon.desk import Desk
from granville.crucible.daemon.settings import CrucibleConfig
from granville.crucible.journal.records import UnknownRun
from granville.crucible.journal.runs import Journal
from granville.crucible.journal.statements import set_run
from granville.crucible.journal.writer import JournalFailed, Writer
from granville.crucible.running.run import Run
from granville.crucible.running.runner import open_runner
from granville.crucible.tools.interface import Call, ToolFailed
from granville.crucible.workflow.model import Input, Step
from granville.doors.peer import Peer
from granville.doors.senders import Senders
from granville.doors.transport import HttpxTransport
from granville.errors import GranvilleError
from granville.testing.kernel import running_kernel
from granville.wire.messages import encode
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
    """By another process, for all that this one knows."""
    hop, tools = Held("take"), Tools(*TOOLS)
    one = open_runner(journal=journal, toolbox_for=tools.open, hop=hop, dial=Place(None).dial)
    async with one as running:
        late: list[Run] = []

        async def start() -> None:
            late.append(await running.start(ECHO, {}, run_id="twice"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            await hop.reached.wait()
            bystander = await running.start(workflow(Step(id="a", tool="hang")), {})
            with Journal.open(journal.path) as theirs:
                async with runner(theirs, Place(None), tools=tools) as other:
                    await (await other.start(ECHO, {}, run_id="twice")).finish()
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


class Rig:
    """The daemon's desk and connections over a runner, without processes."""

    def __init__(self, desk: Desk, deliveries: Deliveries, nursery: trio.Nursery) -> None:
        self.desk, self.deliveries, self.nursery = desk, deliveries, nursery

    def dial(self) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: trio.abc.Stream) -> None:
        async with stream:
            await Connection(stream, Peer(None), self.desk, self.deliveries).run()


@asynccontextmanager
async def serving(journal: Journal) -> AsyncIterator[Rig]:
    config = CrucibleConfig(delivery_ttl_s=0.5)
    started = open_runner(journal=journal, toolbox_for=Tools(*TOOLS).open, dial=Place(None).dial, served=True)
    async with trio.open_nursery() as nursery, started as running:
        desk = Desk(config, running, nursery)
        senders = Senders(config, desk.counters, nursery, HttpxTransport())
        yield Rig(desk, Deliveries(desk, senders, journal.path.with_name("callbacks")), nursery)
        nursery.cancel_scope.cancel()


HANG = msgspec.to_builtins(workflow(Step(id="a", tool="hang")))


@pytest.mark.real_time
async def test_a_client_that_goes_while_its_run_is_begun_takes_it_along(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(journal) as rig:
        begin, begun, go_on = rig.desk.begin, trio.Event(), trio.Event()

        async def slowly(*args: Any) -> Run:
            begun.set()
            await go_on.wait()
            return await begin(*args)

        monkeypatch.setattr(rig.desk, "begin", slowly)
        stream = rig.dial()
        await stream.send_all(encode({"op": "run", "workflow": HANG, "id": "r-left"}))
        await begun.wait()
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        await until(lambda: "r-left" in [run.id for run in journal.runs(state="cancelled")])


@pytest.mark.real_time
async def test_a_run_whose_end_cannot_be_read_ends_for_its_client_all_the_same(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(id: str) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    async with serving(journal) as rig, serve_crucible(rig.dial()) as client:
        monkeypatch.setattr(journal, "run", broken)
        with trio.fail_after(10):
            async with client.run(msgspec.to_builtins(ECHO)) as run:
                with pytest.raises(GranvilleError, match="the daemon failed"):
                    await run.finish()


@pytest.mark.real_time
async def test_a_run_that_is_left_before_it_is_accepted_is_cancelled(journal: Journal) -> None:
    async with serving(journal) as rig, serve_crucible(rig.dial()) as client:
        async with client.run(HANG, id="r-left"):
            pass
        assert journal.run("r-left").state == "cancelled"


@pytest.mark.real_time
async def test_a_disk_that_is_full_costs_no_more_than_the_note(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replace = deliveries_module._replace

    def full(path: Path, data: bytes) -> None:
        if data == b"{}":
            raise OSError(28, "No space left on device")
        replace(path, data)

    monkeypatch.setattr(deliveries_module, "_replace", full)
    async with serving(journal) as rig:
        run = await rig.desk.begin(msgspec.to_builtins(ECHO), None, {}, "r")
        await rig.deliveries.add("r", str(tmp_path / "nobody"), stream=False)
        await until(lambda: rig.desk.counters.undelivered == 1)
        with trio.fail_after(10):
            await rig.desk.all_told()
            assert (await run.finish()).state == "finished"


@pytest.mark.real_time
async def test_a_callback_that_is_named_while_another_is_given_up_stays(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    note = Deliveries._note
    async with serving(journal) as rig:
        await rig.desk.begin(msgspec.to_builtins(ECHO), None, {}, "r")
        await rig.deliveries.add("r", str(tmp_path / "nobody"), stream=False)

        async def slowly(self: Deliveries) -> None:
            if self._due.get("r") is not None:
                await until(lambda: rig.desk.counters.undelivered > 0)
                await trio.sleep(0.05)
            await note(self)

        monkeypatch.setattr(Deliveries, "_note", slowly)
        await rig.deliveries.add("r", str(tmp_path / "else"), stream=False)
        assert str(tmp_path / "else") in (journal.path.with_name("callbacks")).read_text()
        await until(lambda: rig.desk.counters.undelivered == 2)
        with trio.fail_after(10):
            await rig.desk.all_told()


@pytest.mark.parametrize("name", ["/dev/zero", "fifo", "nul\0", "."])
async def test_what_is_no_sound_file_is_not_read(journal: Journal, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    flow = workflow(Step(id="a", model_type="stt", input="{{ sound }}"), inputs={"sound": Input()})
    async with running_kernel() as kernel, runner(journal, Place(kernel)) as running:
        run = await running.start(flow, {"sound": name}, folder=tmp_path)
        with trio.fail_after(60):
            record = await run.finish()
    assert (record.state, record.error_code) == ("failed", "bad_request")


async def test_the_same_run_asked_for_twice_at_once_is_one_run(journal: Journal) -> None:
    async with runner(journal, Place(None), tools=Tools(*TOOLS)) as running:
        runs: list[Run] = []

        async def start() -> None:
            runs.append(await running.start(ECHO, {}, run_id="twice"))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(start)
        assert {(await run.finish()).state for run in runs} == {"finished"}
    assert len(journal.runs()) == 1


async def test_a_run_that_is_forgotten_while_it_is_taken_up_costs_no_other(journal: Journal) -> None:
    hop, tools = Held("nothing"), Tools(*TOOLS)
    async with open_runner(journal=journal, toolbox_for=tools.open, hop=hop, dial=Place(None).dial) as running:
        await (await running.start(ECHO, {}, run_id="r")).finish()
        await trio.testing.wait_all_tasks_blocked()
        journal.apply([("UPDATE run SET state = 'failed'", ()), ("DELETE FROM step", ())])
        hop.name = "steps"
        async with trio.open_nursery() as nursery:

            async def resume() -> None:
                with pytest.raises(UnknownRun):
                    await running.resume("r")

            nursery.start_soon(resume)
            await hop.reached.wait()
            journal.prune(1e12, keep_runs=0)
            hop.go_on.set()
        assert (await (await running.start(ECHO, {})).finish()).state == "finished"
