"""The SDK of `crucible serve`, against the daemon itself."""

from __future__ import annotations

import pytest
import trio

from granville import __version__
from granville.crucible.client import connect_crucible
from granville.crucible.journal.records import UnknownRun
from granville.crucible.messages import RunFailed
from granville.crucible.running.events import DeltaEvent, StepEvent
from granville.crucible.workflow.model import Input, Step, Workflow
from granville.errors import BadRequest, Cancelled, Conflict, GranvilleError, NoDaemon
from tests.e2e.crucible import HELLO, Crucible, slow

CONFIG = {"decode_s": 0.01}
FLOW = Workflow(
    name="flow",
    inputs={"who": Input(type="text")},
    steps=(Step(id="greet", model_type="inference", input="greet {{ who }}"),),
)


@pytest.fixture
def address(serving: Crucible) -> str:
    return str(serving.socket)


async def test_a_run_from_its_start_to_its_outputs(address: str) -> None:
    async with connect_crucible(address) as client:
        assert await client.ping() == __version__
        async with client.run(FLOW, {"who": "Ann"}) as run:
            events = [event async for event in run]
            assert run.outputs == {"greet": "greet Ann"}
        states = [event.state for event in events if isinstance(event, StepEvent)]
        assert states == ["running", "finished"]
        assert "".join(event.delta for event in events if isinstance(event, DeltaEvent)) == "greet Ann"
        async with client.run(HELLO, {"who": "Bo"}, events=False) as run:
            assert (await run.finish())["answer"] == "answer to greet Bo"
        assert [one["id"] for one in await client.runs(1)] == [run.id]
        shown = await client.show(str(run.id), full=True)
        assert [step["key"] for step in shown["steps"]] == ["greet", "answer"]
        assert (await client.status())["granville"] == "ok"


async def test_leaving_a_run_cancels_it_unless_it_is_detached(address: str) -> None:
    async with connect_crucible(address) as client:
        async with client.run(slow(60)) as run:
            await run.accepted()
        assert (await client.show(str(run.id)))["run"]["state"] == "cancelled"
        async with client.run(slow(3), detached=True) as run:
            id = await run.accepted()
        async with client.events(id) as followed:
            assert "2 word" in (await followed.finish())["last"]


async def test_what_a_run_ends_with_is_raised(address: str) -> None:
    async with connect_crucible(address) as client:
        async with client.run(slow(60), id="ends") as run:
            await run.accepted()
            assert await client.cancel("ends") == "cancelled"
            with pytest.raises(Cancelled):
                await run.finish()
        nobody = {"name": "n", "steps": [{"id": "say", "model_type": "tts", "input": "say {{ 1 }}", "timeout_s": 0.3}]}
        async with client.run(nobody) as run:
            with pytest.raises(RunFailed) as caught:
                await run.finish()
        assert caught.value.step == "say"
        async with client.run(FLOW, {"who": 3}) as run:
            with pytest.raises(BadRequest, match="expected a text"):
                await run.finish()
        async with client.run({"name": "x", "steps": []}) as run:
            with pytest.raises(GranvilleError, match="steps"):
                await run.accepted()
        with pytest.raises(UnknownRun):
            await client.show("r-nope")
        async with client.resume("ends") as run:
            with pytest.raises(Conflict):
                await run.accepted()


async def test_two_runs_share_a_connection(address: str) -> None:
    async with connect_crucible(address) as client:
        ended: dict[str, object] = {}

        async def ask(name: str) -> None:
            async with client.run(FLOW, {"who": name}) as run:
                ended[name] = await run.finish()

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:  # both at once
                nursery.start_soon(ask, "Ann")
                nursery.start_soon(ask, "Bo")
    assert ended == {name: {"greet": f"greet {name}"} for name in ("Ann", "Bo")}


async def test_no_daemon_says_how_to_start_one() -> None:
    with pytest.raises(NoDaemon, match=r"start one with `crucible serve -s /tmp/none\.sock`"):
        async with connect_crucible("/tmp/none.sock"):
            pass
