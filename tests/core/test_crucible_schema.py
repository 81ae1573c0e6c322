"""The published schema of workflows: up to date, a schema, and of one mind with the reader."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from granville.crucible.workflow.model import Step, Workflow
from granville.crucible.workflow.problems import WorkflowError
from granville.crucible.workflow.reading import workflow_from
from granville.crucible.workflow.schema import as_text

PUBLISHED = files("granville.crucible.workflow") / "crucible.schema.json"
VALIDATOR = Draft202012Validator(json.loads(PUBLISHED.read_text()))


def test_it_is_up_to_date() -> None:
    assert PUBLISHED.read_text() == as_text(), "python -m granville.crucible.workflow.schema > crucible.schema.json"


def test_it_is_a_schema_with_a_line_on_every_struct() -> None:
    schema = json.loads(PUBLISHED.read_text())
    Draft202012Validator.check_schema(schema)
    assert all(definition["description"] for definition in schema["$defs"].values())
    step = schema["$defs"]["Step"]["properties"]
    assert step["should_run"]["description"].startswith("When false the step is skipped")
    assert set(step) == {name.rstrip("_") for name in Step.__struct_fields__}
    assert set(schema["$defs"]["Workflow"]["properties"]) == set(Workflow.__struct_fields__)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("steps: [{id: a, tool: t}]", True),
        ("steps: [{id: a, tool: t, should_run: true, result: 5, on_error: {use: 1}}]\noutputs: {x: 1}", True),
        ("steps: [{id: a, steps: [{id: b, tool: t}], repeat: {until: true, max: 2}}]", True),
        ("steps: [{id: a, workflow: {name: x, steps: [{id: b, tool: t}]}}]", True),
        ("steps: []", False),
        ("steps: [{id: a b, tool: t}]", False),
        ("steps: [{id: a, tool: t, tols: 1}]", False),
        ("steps: [{id: a, tool: t, timeout_s: -1}]", False),
        ("steps: [{id: a, tool: t, repeat: {until: true}}]", False),
        ("steps: [{id: a, model_type: sst, input: x}]", False),
    ],
)
def test_it_says_what_the_reader_says(text: str, right: bool) -> None:
    value: Any = YAML(typ="safe", pure=True).load(text)
    assert VALIDATOR.is_valid(value) is right
    if right:
        workflow_from(text)
    else:
        with pytest.raises(WorkflowError):
            workflow_from(text)
