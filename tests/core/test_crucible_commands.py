"""`crucible check`, `graph` and `new`, as functions."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from granville.cli.crucible.check import check
from granville.cli.crucible.graph import graph
from granville.cli.crucible.new import KINDS, Kind, new
from granville.crucible.workflow.problems import WorkflowError
from granville.crucible.workflow.reading import open_workflow
from granville.errors import StartupError

WRONG = "steps:\n  - {id: a, tool: t}\n  - id: b\n    model_type: inference\n    input: say {{ aa }} twice\n"


def test_check_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong = tmp_path / "right.yaml", tmp_path / "wrong.yaml"
    right.write_text("steps: [{id: a, tool: t}]")
    wrong.write_text(WRONG)
    assert check(str(right)) == 0
    assert capsys.readouterr().out == f"{right}: right is right\n"
    assert check(str(right), str(wrong), str(tmp_path / "none.yaml")) == 1
    said = capsys.readouterr()
    assert said.out == f"{right}: right is right\n"
    assert said.err.splitlines() == [
        f"{wrong}:5:19: b.input: there is no `aa`; did you mean a?",
        "    5 |     input: say {{ aa }} twice",
        "      |                   ^",
        f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory",
        "crucible: 2 problems",
    ]


def test_check_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(WRONG)
    assert check(str(wrong), as_json=True) == 1
    (problem,) = json.loads(capsys.readouterr().out)
    assert problem == {
        "file": str(wrong), "line": 5, "column": 19, "message": "b.input: there is no `aa`; did you mean a?"
    }  # fmt: skip
    assert check(schema=True) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "A workflow of Crucible"
    with pytest.raises(StartupError, match="which file"):
        check()


def test_workflows_that_are_python_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(
        "from granville.crucible.workflow.model import Step, Workflow\n"
        "right = Workflow(name='right', steps=(Step(id='a', tool='t'),))\n"
        "wrong = Workflow(name='wrong', steps=(Step(id='b', model_type='inference', input='{{ aa }}'),))\n"
    )
    assert check(f"{flows}:right") == 0
    assert capsys.readouterr().out == f"{flows}:right: right is right\n"
    assert check(f"{flows}:wrong") == 1
    assert "b.input: there is no `aa`" in capsys.readouterr().err
    graph(f"{flows}:right")
    assert capsys.readouterr().out.startswith("flowchart TD\n")


def test_what_a_file_says_cannot_move_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text('steps: [{id: a, tool: t, "x\\e[2J": 1}]')
    assert check(str(wrong)) == 1
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_new_writes_what_check_finds_right(kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new("flow", kind=kind, dir=tmp_path)
    said = capsys.readouterr().out
    path = tmp_path / "flow.yaml"
    assert str(path) in said
    assert f"crucible run {path}" in said
    workflow = open_workflow(path, tools=["search", "calculate"])
    assert workflow.name == "flow"
    assert path.read_text().count("#") > 8
    before = path.read_bytes()
    with pytest.raises(StartupError, match="is there already"):
        new("flow", kind=kind, dir=tmp_path)
    assert path.read_bytes() == before


def test_new_refuses_what_is_no_name(tmp_path: Path) -> None:
    for name in ("", "../x", "a/b", ".hidden", "-x"):
        with pytest.raises(StartupError, match="is no name for a workflow"):
            new(name, dir=tmp_path)
    with pytest.raises(StartupError, match="cannot be written"):
        new("x", dir=tmp_path / "nowhere")


def test_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new("flow", kind="agent", dir=tmp_path)
    capsys.readouterr()
    graph(f"{tmp_path}/flow.yaml")
    assert capsys.readouterr().out.startswith("flowchart TD\n")
    graph(f"{tmp_path}/flow.yaml", svg=tmp_path / "flow.svg")
    assert capsys.readouterr().out == f"{tmp_path / 'flow.svg'}: flow, 1 step\n"
    ElementTree.parse(tmp_path / "flow.svg")
    graph(f"{tmp_path}/flow.yaml", svg=Path("-"))
    assert capsys.readouterr().out == (tmp_path / "flow.svg").read_text()
    with pytest.raises(StartupError, match="one picture at a time"):
        graph(f"{tmp_path}/flow.yaml", svg=Path("-"), mermaid=True)
    with pytest.raises(StartupError, match="cannot be written"):
        graph(f"{tmp_path}/flow.yaml", svg=tmp_path / "none" / "x.svg")
    (tmp_path / "wrong.yaml").write_text(WRONG)
    with pytest.raises(WorkflowError):
        graph(f"{tmp_path}/wrong.yaml")
