"""Granville down, restarting, full, cut off, without the model: a step waits as long as it may, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from granville.crucible.journal.runs import Journal
from granville.crucible.running.events import StepEvent
from granville.crucible.running.keys import request_id
from granville.crucible.workflow.model import ForEach, Retry, Step
from granville.testing.kernel import running_kernel
from tests.crucible.rig import Place, runner, says, workflow


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "runs.db") as journal:
        yield journal


async def test_a_run_may_start_before_granville_does(journal: Journal) -> None:
    place = Place(None)
    async with runner(journal, place) as running:
        run = await running.start(workflow(says("a", "hello!")), {})
        await trio.sleep(30)
        assert not run.is_done
        async with running_kernel() as kernel:
            place.put(kernel)
            record = await run.finish()
    assert record.outputs == {"a": "hello!"}
    assert journal.steps(run.id)[0].attempts == 1


async def test_a_step_that_waits_says_so_once_and_when_it_goes_on(journal: Journal) -> None:
    place = Place(None)
    async with runner(journal, place) as running:
        run = await running.start(workflow(says("a", "hello!")), {})
        await trio.sleep(30)
        async with running_kernel() as kernel:
            place.put(kernel)
            await run.finish()
    told = [(event.state, event.waits) async for event in run.events() if isinstance(event, StepEvent)]
    assert told == [
        ("running", None), ("running", "no daemon is listening here"), ("running", None), ("finished", None),
    ]  # fmt: skip


async def test_one_that_stays_away_is_given_up_and_said_why(journal: Journal) -> None:
    async with runner(journal, Place(None), wait_for_granville_s=20) as running:
        begun = trio.current_time()
        record = await (await running.start(workflow(says("a", "hello!")), {})).finish()
    assert (record.state, record.error_code) == ("failed", "no_daemon")
    assert record.error == "a: no daemon is listening here"
    assert trio.current_time() - begun == pytest.approx(20, abs=1)


async def test_a_steps_own_time_is_shorter_than_patience(journal: Journal) -> None:
    async with runner(journal, Place(None)) as running:
        record = await (await running.start(workflow(says("a", "hello!", timeout_s=3)), {})).finish()
    assert record.error == "a: its 3 s (timeout_s) are over"


@pytest.mark.parametrize("away_s", [0, 10])
async def test_a_restart_in_the_middle_costs_no_attempt_and_loses_nothing(journal: Journal, away_s: float) -> None:
    place = Place(None)
    words = "one two three four five six seven eight nine ten"
    flow = workflow(
        says("each", "{{ item }} " + words, for_each=ForEach(items="range(20) | list", parallel=8)),
        says("last", "{{ each | length }}"),
    )
    async with runner(journal, place) as running:
        async with running_kernel(slots=4, decode_s=1) as first:
            place.put(first)
            run = await running.start(flow, {})
            await trio.sleep(25)
            done = {step.key for step in journal.steps(run.id) if step.ended}
            assert 0 < len(done) < 20
            place.put(None)
        await place.cut()
        await trio.sleep(away_s)
        async with running_kernel(slots=4, decode_s=1) as second:
            asked_before = len(place.requests)
            place.put(second)
            record = await run.finish()
    assert record.state == "finished", record.error
    assert record.outputs == {"last": "20"}
    again = {request.id for request in place.requests[asked_before:]}
    assert not again & {request_id(run.id, key) for key in done}
    assert {step.attempts for step in journal.steps(run.id)} == {1}


async def test_connections_that_break_under_many_steps_are_made_again(journal: Journal) -> None:
    async with running_kernel(slots=4, decode_s=0.5) as kernel:
        place = Place(kernel)
        async with runner(journal, place) as running:
            flow = workflow(
                says("each", "{{ item }} a b c d e f", for_each=ForEach(items="range(64) | list", parallel=64))
            )
            run = await running.start(flow, {})
            for _ in range(4):
                await trio.sleep(6)
                await place.cut()
            record = await run.finish()
    assert record.outputs == {"each": [f"{n} a b c d e f" for n in range(64)]}
    assert place.dialled == 5


async def test_a_full_queue_is_waited_for_and_is_no_attempt(journal: Journal) -> None:
    async with running_kernel(slots=1, decode_s=1, queue_size=2) as kernel:
        place = Place(kernel)
        async with runner(journal, place) as running:
            flow = workflow(
                says(
                    "each", "{{ item }}!", for_each=ForEach(items="range(30) | list", parallel=30),
                    retry=Retry(attempts=1),
                )
            )  # fmt: skip
            record = await (await running.start(flow, {})).finish()
        assert kernel.desk.counters.rejected > 0
    assert record.state == "finished", record.error
    assert len(record.outputs["each"]) == 30  # type: ignore[index]


async def test_a_type_that_nobody_serves_is_told_at_once_with_what_is_served(journal: Journal) -> None:
    async with running_kernel() as kernel, runner(journal, Place(kernel)) as running:
        begun = trio.current_time()
        record = await (await running.start(workflow(Step(id="a", model_type="tts", input="hello!")), {})).finish()
    assert (record.state, record.error_code) == ("failed", "no_model")
    assert record.error == (
        "a: no model of type tts is served at /nowhere/granville.sock; it serves inference (fake-0). Start one with "
        "`granville serve --models tts:MODEL,…`"
    )
    assert trio.current_time() - begun < 1


async def test_a_model_that_fails_is_tried_again_where_retry_says_so(journal: Journal) -> None:
    settings: dict[str, Any] = {"fault": "fail_job", "fault_after_steps": 1}
    async with running_kernel(**settings) as kernel, runner(journal, Place(kernel)) as running:
        flow = workflow(says("a", "hello!", retry=Retry(attempts=2, backoff_s=1, on=("driver_failed",))))
        record = await (await running.start(flow, {})).finish()
    assert record.outputs == {"a": "hello!"}
    async with running_kernel(**settings) as kernel, runner(journal, Place(kernel)) as running:
        flow = workflow(says("a", "hello!", retry=Retry(attempts=2, backoff_s=1, on=("bad_output",))))
        record = await (await running.start(flow, {})).finish()
    assert (record.state, record.error_code) == ("failed", "driver_failed")


async def test_what_an_earlier_life_left_running_is_taken_over_or_waited_out(journal: Journal) -> None:
    async with running_kernel(decode_s=1) as kernel:
        place = Place(kernel)
        id = request_id("mine", "a")
        other = kernel.connect()
        await other.ask({"id": id, "text": "something else " * 3})
        async with runner(journal, place) as running:
            run = await running.start(workflow(says("a", "hello!")), {}, run_id="mine")
            await trio.sleep(1)
            await trio.aclose_forcefully(other.stream)
            record = await run.finish()
    assert record.outputs == {"a": "hello!"}


async def test_one_request_that_is_too_large_fails_alone(journal: Journal) -> None:
    async with running_kernel(decode_s=1, max_request_bytes=100_000) as kernel:
        place = Place(kernel)
        async with runner(journal, place) as running:
            flow = workflow(
                says("small", "a b c d e f"),
                says("large", "{{ 'xy ' * 66000 }}", on_error="continue"),
                says("middle", "{{ 'xy ' * 50000 }}", on_error="continue"),
                outputs={"small": "small", "large": "steps.large.error", "middle": "steps.middle.error"},
            )
            record = await (await running.start(flow, {})).finish()
    assert record.state == "finished", record.error
    assert record.outputs is not None
    assert record.outputs["small"] == "a b c d e f"
    assert "100000" in record.outputs["large"] or "bytes" in record.outputs["large"]
    assert "bytes" in record.outputs["middle"]
