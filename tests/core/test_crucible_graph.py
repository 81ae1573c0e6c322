"""What depends on what."""

from __future__ import annotations

from granville.crucible.workflow.graph import dependencies
from granville.crucible.workflow.model import ForEach, Instead, Repeat, Step


def step(id: str, **fields: object) -> Step:
    return Step(id=id, **{"tool": "t", **fields})  # type: ignore[arg-type]


def test_a_step_waits_for_what_it_reads_wherever_it_reads_it() -> None:
    steps = [
        step("a"),
        step("b", output="bee"),
        step("c"),
        step("bare", input="a"),
        step("text", input="a word"),
        step("deep", with_={"x": [{"y": "{{ bee.z }}"}]}),
        step("condition", should_run="a and steps.b.state == 'finished'"),
        step("schema", json_schema={"maximum": "{{ c | length }}"}),
        step("instead", on_error=Instead(use="{{ c }}")),
        step("session", session="s-{{ a }}"),
        step("messages", messages=[{"role": "user", "content": "{{ c }}"}]),
        step("replaced", result="value ~ bee"),
        step("needing", needs=("c",)),
        step("items", for_each="c"),
    ]
    assert dependencies(steps) == {
        "a": set(), "b": set(), "c": set(), "bare": {"a"}, "text": set(), "deep": {"b"}, "condition": {"a", "b"},
        "schema": {"c"}, "instead": {"c"}, "session": {"a"}, "messages": {"c"}, "replaced": {"b"}, "needing": {"c"},
        "items": {"c"},
    }  # fmt: skip


def test_steps_of_one_name_run_in_their_order_and_a_reader_waits_for_those_before_it() -> None:
    steps = [
        step("one", output="x"),
        step("early", input="x"),
        step("two", output="x"),
        step("late", input="x"),
        step("three", output="x", input="x"),
    ]
    assert dependencies(steps) == {
        "one": set(), "early": {"one"}, "two": {"one"}, "late": {"one", "two"}, "three": {"one", "two"}
    }  # fmt: skip


def test_a_group_waits_for_what_is_read_in_it_but_not_for_its_own_names() -> None:
    inner = (step("inner", input="{{ item ~ index ~ a }}"), step("nested", steps=(step("deep", input="b"),), tool=None))
    steps = [
        step("item"),
        step("index"),
        step("round"),
        step("a"),
        step("b"),
        step("c"),
        step("each", tool=None, steps=inner, for_each=ForEach(items="c")),
        step(
            "again", tool=None, steps=(step("try", input="{{ round }}{{ item }}"),), repeat=Repeat(until="try", max=3)
        ),
        step("started", tool=None, steps=inner[:0], repeat=Repeat(until="true", max=3, start={"n": "{{ b }}"})),
    ]
    found = dependencies(steps)
    assert found["each"] == {"a", "b", "c"}
    assert found["again"] == {"item"}
    assert found["started"] == {"b"}


def test_what_is_wrong_is_kept_for_the_check_to_tell() -> None:
    assert dependencies([step("a", needs=("b", "nobody")), step("b", input="{{ steps.a.output }}")]) == {
        "a": {"b"}, "b": {"a"}
    }  # fmt: skip
