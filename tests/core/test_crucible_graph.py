"""What depends on what."""

from __future__ import annotations

from xml.etree import ElementTree

from granville.crucible.workflow.drawing import svg
from granville.crucible.workflow.graph import dependencies, mermaid
from granville.crucible.workflow.model import ForEach, Instead, Repeat, Step
from granville.crucible.workflow.reading import workflow_from


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


DRAWN = """
inputs: {question: {type: text}, unread: {}}
steps:
  - {id: hear, model_type: stt, input: "{{ inputs.question }}", output: heard}
  - id: each
    for_each: {items: "[1, 2]", name: one}
    steps:
      - {id: ask, model_type: inference, input: "{{ one }} {{ heard }}", should_run: 'heard != "<no>" | string'}
      - {id: note, tool: write, with: {x: "{{ ask }}"}}
  - {id: again, tool: t, needs: [each], repeat: {until: again, max: 3}}
outputs: {all: each, x: steps.again.output}
"""


def test_mermaid() -> None:
    assert mermaid(workflow_from(DRAWN)) == (
        "flowchart TD\n"
        '  n0(["question<br/>text"])\n'
        '  n1(["unread<br/>any"])\n'
        '  n2("hear<br/>stt<br/>→ heard")\n'
        '  subgraph n3["each<br/>for each one in [1, 2]"]\n'
        '    n4["ask<br/>inference"]\n'
        '    n5[["note<br/>tool write"]]\n'
        "    n4 --> n5\n"
        "  end\n"
        '  n6[["again<br/>tool t<br/>until again<br/>3 times at most"]]\n'
        '  n7(["outputs<br/>all<br/>x"])\n'
        "  n2 --> n3\n"
        "  n3 --> n6\n"
        "  n0 --> n2\n"
        "  n3 --> n7\n"
        "  n6 --> n7\n"
    )


def boxes(text: str) -> dict[str, tuple[float, float, float, float]]:
    """The rectangles of an SVG by the title in them: left, top, right, bottom."""
    root = ElementTree.fromstring(text)
    found: dict[str, tuple[float, float, float, float]] = {}
    at: tuple[float, float, float, float] | None = None
    for element in root.iter():
        name, kind = element.tag.rpartition("}")[2], element.get("class", "")
        if name == "rect" and kind.startswith("box"):
            left, top, width, height = (float(element.get(key, "")) for key in ("x", "y", "width", "height"))
            at = (left, top, left + width, top + height)
        elif name == "text" and kind == "title" and at is not None:
            found[element.text or ""] = at
    return found


def test_svg_has_boxes_that_do_not_overlap_and_frames_around_groups() -> None:
    picture = svg(workflow_from(DRAWN))
    found = boxes(picture)
    assert set(found) == {"question", "unread", "hear", "each", "ask", "note", "again", "outputs"}
    for one, (left, top, right, bottom) in found.items():
        for other, (left_, top_, right_, bottom_) in found.items():
            inside = one == "each" and other in ("ask", "note")
            if inside:
                assert left <= left_ < right_ <= right
                assert top <= top_ < bottom_ <= bottom
            elif one != other and not (other == "each" and one in ("ask", "note")):
                assert right <= left_ or right_ <= left or bottom <= top_ or bottom_ <= top, (one, other)
    assert found["hear"][1] > found["question"][3]
    assert found["outputs"][1] > found["again"][3]
    assert "&lt;no&gt;" in picture
    assert "prefers-color-scheme: dark" in picture


def test_svg_of_many_steps_is_drawn() -> None:
    steps = "".join(
        f"- {{id: s{n}, tool: t, with: {{x: '{{{{ {f's{n // 2}' if n else 1} }}}}'}}}}\n" for n in range(200)
    )
    assert len(boxes(svg(workflow_from(f"steps:\n{steps}")))) == 201
