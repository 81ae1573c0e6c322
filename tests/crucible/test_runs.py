"""What a run does: order, lists, rounds, attempts, deadlines, budgets, sessions, its one end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from granville.crucible.journal.records import RunRecord, UnknownRun
from granville.crucible.journal.runs import Journal
from granville.crucible.running.events import DeltaEvent, RunEvent, StepEvent
from granville.crucible.tools.interface import Call, ToolFailed
from granville.crucible.workflow.model import (
    ForEach,
    Input,
    Instead,
    Limits,
    Repeat,
    Retry,
    Step,
    Workflow,
)
from granville.errors import BadRequest, Conflict, QueueFull
from granville.testing.kernel import running_kernel
from tests.crucible.rig import Place, Tools, runner, says, tool, workflow


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    with Journal.open(tmp_path / "runs.db") as journal:
        yield journal


async def ended(
    journal: Journal, flow: Workflow, inputs: Mapping[str, Any] | None = None, *, tools: Tools | None = None,
    place: Place | None = None, **settings: Any,
) -> RunRecord:  # fmt: skip
    """The record of a run before a kernel with these settings."""
    async with running_kernel(**settings) as kernel:
        place = place or Place(None)
        place.put(kernel)
        async with runner(journal, place, tools=tools) as running:
            return await (await running.start(flow, inputs or {})).finish()


async def sleepy(arguments: Mapping[str, Any], call: Call) -> Any:
    await trio.sleep(arguments.get("s", 1))
    return arguments.get("value")


class Flaky:
    """A tool that fails some times, then gives what it was asked for."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    async def __call__(self, arguments: Mapping[str, Any], call: Call) -> Any:
        await trio.lowlevel.checkpoint()
        self.calls += 1
        if self.calls <= self.failures:
            raise ToolFailed(f"failure {self.calls}")
        return arguments.get("value", "done")


async def test_values_go_from_step_to_step(journal: Journal) -> None:
    flow = workflow(
        says("greet", "hello {{ who }}", output="greeting"),
        says("again", "greeting"),
        Step(id="count", model_type="embedding", input="greeting"),
        says("whole", "{{ steps.again.output }} and {{ count[0] | int }} words", result="value | upper"),
        inputs={"who": Input(type="text")},
        outputs={"said": "whole", "vector": "count"},
    )
    record = await ended(journal, flow, {"who": "you"}, types=["inference", "embedding"])
    assert record.state == "finished", record.error
    assert record.outputs == {"said": "HELLO YOU AND 2 WORDS", "vector": [2.0, 9.0]}
    steps = {step.key: step for step in journal.steps(record.id)}
    assert steps["again"].inputs == {"input": "hello you"}
    assert steps["whole"].usage == {"prompt_tokens": 5, "cached_tokens": 0, "completion_tokens": 5}
    assert record.steps_done == 4
    assert journal.run(record.id) == record


async def test_without_outputs_a_run_puts_out_what_its_last_step_does(journal: Journal) -> None:
    record = await ended(journal, workflow(says("a", "one!"), says("b", "two!", output="last")))
    assert record.outputs == {"last": "two!"}


async def test_an_output_that_cannot_be_had_is_named(journal: Journal) -> None:
    record = await ended(journal, workflow(says("a", "x!"), outputs={"last": "a[:0] | list | last"}))
    assert (record.state, record.error_code, record.step) == ("failed", "bad_template", None)
    assert record.error is not None
    assert record.error.startswith("outputs.last: no last item")


async def test_steps_that_need_nothing_of_each_other_run_side_by_side(journal: Journal) -> None:
    tools = Tools(tool("sleep", sleepy))
    flow = workflow(
        Step(id="a", tool="sleep", with_={"s": 5}),
        Step(id="b", tool="sleep", with_={"s": 5}),
        Step(id="c", tool="sleep", with_={"s": 1}, needs=("a", "b")),
    )
    record = await ended(journal, flow, tools=tools)
    assert record.updated_at - record.created_at == pytest.approx(6, abs=0.1)


async def test_a_list_is_worked_on_a_few_at_a_time_and_keeps_its_order(journal: Journal) -> None:
    running, most = 0, 0

    async def work(arguments: Mapping[str, Any], call: Call) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(10 - arguments["n"] % 10)
        running -= 1
        return arguments["n"] * 10

    flow = workflow(
        Step(
            id="each",
            tool="work",
            with_={"n": "{{ number }}"},
            for_each=ForEach(items="range(100) | list", name="number", parallel=7),
        )
    )
    record = await ended(journal, flow, tools=Tools(tool("work", work)))
    assert record.outputs == {"each": [n * 10 for n in range(100)]}
    assert most == 7
    assert {step.key for step in journal.steps(record.id)} >= {"each", "each[0]", "each[99]"}


async def test_ten_thousand_items_are_no_ten_thousand_tasks(journal: Journal) -> None:
    most = 0

    async def count(arguments: Mapping[str, Any], call: Call) -> Any:
        nonlocal most
        await trio.lowlevel.checkpoint()
        most = max(most, trio.lowlevel.current_statistics().tasks_living)
        return None

    flow = workflow(
        Step(id="many", tool="count", for_each=ForEach(items="items", parallel=64)),
        inputs={"items": Input(type="list")},
        limits=Limits(steps=20_000),
    )
    record = await ended(journal, flow, {"items": [0] * 10_000}, tools=Tools(tool("count", count)))
    assert record.state == "finished", record.error
    assert most < 120
    too_many = await ended(journal, flow, {"items": [0] * 10_001}, tools=Tools(tool("count", count)))
    assert too_many.error is not None
    assert "10001 items, and 10000 are the most" in too_many.error


async def test_a_group_is_run_until_what_it_puts_out_says_so(journal: Journal) -> None:
    group = Step(
        id="loop",
        repeat=Repeat(until="note | length > 6", max=10, start={"note": "{{ seed }}"}),
        steps=(says("add", "{{ note }} {{ round }}", output="note"),),
        result="{'note': note, 'rounds': round + 1}",
    )
    flow = workflow(group, inputs={"seed": Input(type="text")}, outputs={"loop": "loop", "all": "steps.loop.exhausted"})
    record = await ended(journal, flow, {"seed": "x"})
    assert record.outputs == {"loop": {"note": "x 0 1 2", "rounds": 3}, "all": False}
    bounded = workflow(
        says("one", "{{ one }}!", repeat=Repeat(until="false", max=3, start={"one": "x"})),
        outputs={"one": "one", "all": "steps.one.exhausted"},
    )
    record = await ended(journal, bounded)
    assert record.outputs == {"one": "x!!!", "all": True}
    assert [step.key for step in journal.steps(record.id)] == ["one[0]", "one[1]", "one[2]", "one"]


async def test_groups_in_lists_in_groups_have_keys_and_scopes_of_their_own(journal: Journal) -> None:
    inner = Step(
        id="loop",
        repeat=Repeat(until="round == 1", max=5),
        steps=(says("plan", "{{ word }}{{ index }}{{ round }}"),),
    )
    flow = workflow(
        Step(id="each", for_each=ForEach(items="['a', 'b']", name="word"), steps=(inner, says("last", "{{ loop }}.")))
    )
    record = await ended(journal, flow, slots=4)
    assert record.outputs == {"each": ["a01.", "b11."]}
    assert "each[1].loop[0].plan" in {step.key for step in journal.steps(record.id)}


async def test_a_skipped_step_is_null_and_its_arguments_are_not_looked_at(journal: Journal) -> None:
    flow = workflow(
        says("a", "{{ missing.part }}", should_run="flag"),
        says("b", "it is {{ a is none }}"),
        inputs={"flag": Input(type="boolean")},
        outputs={"b": "b", "state": "steps.a.state"},
    )
    record = await ended(journal, flow, {"flag": False})
    assert record.outputs == {"b": "it is true", "state": "skipped"}


async def test_a_failed_step_fails_the_run_and_ends_what_runs_beside_it(journal: Journal) -> None:
    tools = Tools(tool("flaky", Flaky(1)), tool("sleep", sleepy))
    flow = workflow(
        Step(id="slow", tool="sleep", with_={"s": 1000}), Step(id="bad", tool="flaky"), says("c", "{{ bad }}")
    )
    record = await ended(journal, flow, tools=tools)
    assert (record.state, record.step, record.error_code) == ("failed", "bad", "tool_failed")
    assert record.error == "bad: failure 1"
    states = {step.key: (step.state, step.ended) for step in journal.steps(record.id)}
    assert states == {"slow": ("cancelled", False), "bad": ("failed", False)}


async def test_on_error_goes_on_with_null_or_with_what_it_says(journal: Journal) -> None:
    tools = Tools(tool("flaky", Flaky(100)))
    flow = workflow(
        Step(id="a", tool="flaky", on_error="continue"),
        Step(id="b", tool="flaky", on_error=Instead(use="{{ word }}")),
        Step(id="each", tool="flaky", for_each="[1, 2]", on_error=Instead(use="{{ item }}")),
        Step(id="group", on_error="continue", steps=(Step(id="inner", tool="flaky"),)),
        inputs={"word": Input()},
        outputs={"a": "a", "b": "b", "each": "each", "group": "group", "why": "steps.a.error"},
    )
    record = await ended(journal, flow, {"word": "instead"}, tools=tools)
    assert record.state == "finished", record.error
    assert record.outputs is not None
    assert record.outputs["why"].startswith("failure ")
    assert record.outputs | {"why": ""} == {"a": None, "b": "instead", "each": [1, 2], "group": None, "why": ""}


async def test_attempts_are_counted_told_and_backed_off(journal: Journal) -> None:
    flaky = Flaky(2)
    flow = workflow(
        Step(id="a", tool="flaky", retry=Retry(attempts=3, backoff_s=10)), outputs={"n": "steps.a.attempts"}
    )
    async with runner(journal, Place(None), tools=Tools(tool("flaky", flaky))) as running:
        run = await running.start(flow, {})
        events = [event async for event in run.events() if isinstance(event, StepEvent)]
    assert run.record.outputs == {"n": 3}
    assert [(event.state, event.attempt) for event in events] == [
        ("running", 1), ("failed", 1), ("running", 2), ("failed", 2), ("running", 3), ("finished", 3),
    ]  # fmt: skip
    pauses = [event.retry_in_s for event in events if event.retry_in_s is not None]
    assert 7 < pauses[0] < 13
    assert 14 < pauses[1] < 26


async def test_attempts_end(journal: Journal) -> None:
    flaky = Flaky(100)
    flow = workflow(Step(id="a", tool="flaky"), retry=Retry(attempts=4, backoff_s=0))
    record = await ended(journal, flow, tools=Tools(tool("flaky", flaky)))
    assert (record.state, flaky.calls) == ("failed", 4)
    assert journal.steps(record.id)[0].attempts == 4


async def test_calls_that_are_made_once_are_not_tried_again_by_the_workflows_retry(journal: Journal) -> None:
    flaky = Flaky(1)
    flow = workflow(Step(id="a", tool="flaky"), retry=Retry(attempts=4, backoff_s=0))
    record = await ended(journal, flow, tools=Tools(tool("flaky", flaky, once=True)))
    assert (record.state, flaky.calls) == ("failed", 1)


async def test_an_attempt_has_its_time_and_a_tool_that_hangs_does_too(journal: Journal) -> None:
    tools = Tools(tool("sleep", sleepy))
    flow = workflow(Step(id="a", tool="sleep", with_={"s": 10**6}, timeout_s=2, retry=Retry(attempts=2, backoff_s=0)))
    record = await ended(journal, flow, tools=tools)
    assert record.error == "a: its 2 s (timeout_s) are over"
    assert record.error_code == "deadline_exceeded"
    assert record.updated_at - record.created_at == pytest.approx(4, abs=0.1)
    hangs = await ended(journal, workflow(Step(id="a", tool="sleep", with_={"s": 10**6})), tools=tools)
    assert hangs.error == "a: its 300 s (timeout_s) are over"


async def test_a_runs_time_is_every_requests_and_ends_it(journal: Journal) -> None:
    place = Place(None)
    flow = workflow(says("a", "x " * 100), says("b", "{{ a }}"), timeout_s=15)
    record = await ended(journal, flow, place=place, decode_s=0.1)
    assert (record.state, record.error_code) == ("failed", "deadline_exceeded")
    assert record.error == "the run's 15 s (timeout_s) are over; what ran was b"
    assert [request.timeout_ms for request in place.requests] == [
        pytest.approx(15_500, abs=50), pytest.approx(5500, abs=200),
    ]  # fmt: skip


async def test_a_workflow_in_a_workflow_has_inputs_names_and_limits_of_its_own(journal: Journal) -> None:
    inner = Workflow(
        name="inner",
        inputs={"text": Input(type="text")},
        steps=(says("answer", "<{{ text }}>", output="said"),),
        outputs={"said": "said"},
        limits=Limits(steps=1),
        priority="high",
    )
    place = Place(None)
    flow = workflow(
        says("said", "outer!"),
        Step(id="sub", workflow=inner, with_={"text": "{{ said }}"}),
        outputs={"sub": "sub.said", "said": "said"},
    )
    record = await ended(journal, flow, place=place)
    assert record.outputs == {"sub": "<outer!>", "said": "outer!"}
    assert "sub/answer" in {step.key for step in journal.steps(record.id)}
    assert [request.priority for request in place.requests] == ["normal", "high"]
    wrong = await ended(journal, workflow(Step(id="sub", workflow=inner, with_={"txt": "x"})))
    assert wrong.error is not None
    assert "inputs.txt: inner has no such input; it has text" in wrong.error


async def test_turns_of_a_session_are_serial_and_carry_all_that_was_said(journal: Journal) -> None:
    place = Place(None)
    flow = workflow(
        says("first", "one!", system="Be brief."),
        says("second", "two!"),
        says("apart", "three!", session="other"),
        says("alone", "four!", session=""),
        session="talk",
    )
    record = await ended(journal, flow, place=place, slots=4, decode_s=0.1)
    assert record.state == "finished", record.error
    asked = {request.session_id: request for request in place.requests}
    talk = [request for request in place.requests if request.session_id == f"{record.id}/talk"]
    assert [[(m.role, m.content) for m in request.messages or ()] for request in talk] == [
        [("system", "Be brief."), ("user", "one!")],
        [("system", "Be brief."), ("user", "one!"), ("assistant", "one!"), ("user", "two!")],
    ]
    assert asked[f"{record.id}/other"].messages is not None
    assert asked[None].text == "four!"


async def test_endless_loops_end_at_the_budget(journal: Journal) -> None:
    flow = workflow(
        Step(id="loop", repeat=Repeat(until="false", max=1000), steps=(says("a", "x!"),), on_error="continue"),
        limits=Limits(steps=25),
    )
    place = Place(None)
    record = await ended(journal, flow, place=place)
    assert (record.state, record.error_code) == ("failed", "budget_exceeded")
    assert record.error is not None
    assert "limits.steps" in record.error
    assert len(place.requests) == 25
    tokens = workflow(says("a", "x!", repeat=Repeat(until="false", max=1000)), limits=Limits(tokens=10))
    record = await ended(journal, tokens, place=place)
    assert record.error_code == "budget_exceeded"
    assert len(place.requests) == 25 + 5


async def test_cancelled_a_run_ends_once_and_so_do_its_jobs(journal: Journal) -> None:
    async with running_kernel(decode_s=1) as kernel, runner(journal, Place(kernel)) as running:
        run = await running.start(workflow(says("a", "x " * 1000), says("b", "y " * 1000)), {})
        await trio.sleep(5)
        record = await running.cancel(run.id)
        assert (record.state, record.error) == ("cancelled", "cancelled by request")
        assert len(kernel.desk.admission) == 0
        assert await running.cancel(run.id) == journal.run(run.id)
        events = [event async for event in run.events()]
        assert [event.state for event in events if isinstance(event, RunEvent)] == ["running", "cancelled"]
        with pytest.raises(Conflict, match="was cancelled"):
            await running.resume(run.id)
        with pytest.raises(UnknownRun):
            await running.cancel("r-none")
    assert {step.state for step in journal.steps(run.id)} == {"cancelled"}


async def test_events_are_told_from_the_start_and_deltas_only_to_those_who_are_there(journal: Journal) -> None:
    async with running_kernel(decode_s=1) as kernel:
        place = Place(kernel)
        async with runner(journal, place) as running:
            run = await running.start(workflow(says("a", "one two three"), says("b", "{{ a }}")), {})
            seen = []
            async with trio.open_nursery() as nursery:

                async def follow() -> None:
                    seen.extend([event async for event in run.events()])

                nursery.start_soon(follow)
            late = [event async for event in run.events()]
            again = await running.follow(run.id)
            replayed = [event async for event in again.events()]
    assert (
        "".join(event.delta for event in seen if isinstance(event, DeltaEvent) and event.step == "b") == "one two three"
    )
    assert [event for event in late if not isinstance(event, DeltaEvent)] == [
        event for event in seen if not isinstance(event, DeltaEvent)
    ]
    assert [(event.step, event.state) for event in replayed if isinstance(event, StepEvent)] == [
        ("a", "finished"), ("b", "finished"),
    ]  # fmt: skip
    assert isinstance(replayed[-1], RunEvent)
    assert replayed[-1].outputs == {"b": "one two three"}


async def test_nobody_follows_and_nothing_is_streamed(journal: Journal) -> None:
    place = Place(None)
    await ended(journal, workflow(says("a", "x!")), place=place)
    assert not place.requests[0].stream


async def test_whoever_follows_the_states_alone_has_nothing_streamed(journal: Journal) -> None:
    async with running_kernel(decode_s=1) as kernel:
        place = Place(kernel)
        async with runner(journal, place) as running:
            run = await running.start(workflow(says("a", "one two"), says("b", "{{ a }}")), {})
            states = [event async for event in run.events(deltas=False)]
    assert [request.stream for request in place.requests] == [False, False]
    assert [event.step for event in states if isinstance(event, StepEvent)] == ["a", "a", "b", "b"]


async def test_the_same_start_is_the_same_run_and_another_one_is_refused(journal: Journal) -> None:
    flow = workflow(says("a", "{{ x }}"), inputs={"x": Input()})
    async with running_kernel(decode_s=1) as kernel:
        place = Place(kernel)
        async with runner(journal, place) as running:
            run = await running.start(flow, {"x": "1"}, run_id="mine")
            assert await running.start(flow, {"x": "1"}, run_id="mine") is run
            await run.finish()
            again = await running.start(flow, {"x": "1"}, run_id="mine")
            assert (await again.finish()).outputs == {"a": "1"}
            with pytest.raises(Conflict, match="another run"):
                await running.start(flow, {"x": "2"}, run_id="mine")
            assert len(place.requests) == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "inputs.text: missing; expected a text, what to say"),
        ({"text": 1}, "inputs.text: expected a text, got an integer"),
        ({"text": "x", "other": 1}, "inputs.other: test has no such input; it has text, count"),
        ({"text": "x", "count": True}, "inputs.count: expected a whole number, got a boolean"),
    ],
)
async def test_wrong_inputs_are_told_before_anything_runs(
    journal: Journal, inputs: dict[str, Any], message: str
) -> None:
    declared = {"text": Input(type="text", description="what to say"), "count": Input(type="integer", default=3)}
    async with runner(journal, Place(None)) as running:
        with pytest.raises(BadRequest) as caught:
            await running.start(workflow(says("a", "x!"), inputs=declared), inputs)
        assert caught.value.message == message
    assert journal.runs() == []


async def test_a_path_in_place_of_a_workflow_is_refused(journal: Journal) -> None:
    async with runner(journal, Place(None)) as running:
        with pytest.raises(BadRequest, match="read_workflow"):
            await running.start(workflow(Step(id="sub", workflow="other.yaml")), {})


async def test_so_many_runs_and_no_more_and_all_get_their_turn(journal: Journal) -> None:
    async with (
        running_kernel(slots=4, decode_s=0.01, queue_size=1000) as kernel,
        runner(journal, Place(kernel), max_runs=100) as running,
    ):
        flow = workflow(*[says(f"s{n}", f"{{{{ s{n - 1} }}}}x" if n else "x!") for n in range(5)])
        runs = [await running.start(flow, {}) for _ in range(100)]
        with pytest.raises(QueueFull, match="100 runs"):
            await running.start(flow, {})
        records = [await run.finish() for run in runs]
    assert {record.state for record in records} == {"finished"}
    assert all(record.outputs == {"s4": "x!xxxx"} for record in records)


async def test_a_wide_run_does_not_hold_up_a_narrow_one(journal: Journal) -> None:
    async with running_kernel(slots=4, decode_s=0.1) as kernel, runner(journal, Place(kernel)) as running:
        wide = await running.start(
            workflow(
                Step(
                    id="each",
                    for_each=ForEach(items="range(64) | list", parallel=64),
                    steps=(says("inner", "{{ item }}", for_each=ForEach(items="range(8) | list", parallel=8)),),
                )
            ),
            {},
        )
        await trio.sleep(1)
        assert len(kernel.desk.admission) == 256
        narrow = await running.start(workflow(says("a", "x!"), priority="critical"), {})
        begun = trio.current_time()
        assert (await narrow.finish()).state == "finished"
        assert trio.current_time() - begun < 1
        assert not wide.is_done
        assert (await wide.finish()).state == "finished"


async def test_granville_is_told_what_comes(journal: Journal) -> None:
    """The beginning of a prompt whose step waits, once for all runs; a session while a tool works between its turns."""
    system = "You answer in one short sentence, in plain words, without lists, without headings, and politely."
    flow = workflow(
        Step(id="listen", tool="sleep", with_={"s": 5, "value": "heard"}),
        says("think", "{{ listen }}", system=system, session="talk"),
        Step(id="act", tool="sleep", with_={"s": 5}, needs=("think",)),
        says("again", "and {{ act }}", session="talk"),
    )
    async with running_kernel() as kernel:
        place = Place(kernel)
        async with runner(journal, place, tools=Tools(tool("sleep", sleepy))) as running:
            runs = [await running.start(flow, {}) for _ in range(2)]
            for run in runs:
                assert (await run.finish()).state == "finished"
    told = [(control.session_id, [m.content for m in control.messages or ()]) for control in place.warmed]
    assert told[0] == (None, [system])
    assert sorted(str(session) for session, _ in told[1:]) == sorted(f"{run.id}/talk" for run in runs)
