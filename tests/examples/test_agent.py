"""The loop plans, calls what it has planned, sees what came of it, and ends; later turns read only what is new."""

from __future__ import annotations

import json
from typing import Any

from tests.examples.harness import EXAMPLES, Shell

EXAMPLE = EXAMPLES / "agent"
PRICES = json.loads((EXAMPLE / "data" / "prices.json").read_text())
NEW_TOKENS = 64
"""A tool's answer and the template's marks round it are fewer."""


def test_an_agent_plans_calls_observes_and_answers(shell: Shell) -> None:
    task = "What do three lanterns cost together?"
    outputs = shell.outputs(
        EXAMPLE / "workflow.yaml", "--tools", EXAMPLE / "tools.py", "--input", f"task={task}", "--id", "agent-1"
    )
    assert outputs["exhausted"] is False
    assert outputs["answer"].strip()
    plan = outputs["plan"]
    assert 1 <= len(plan) <= 6

    steps = {
        step["key"]: step for step in json.loads(shell.crucible("runs", "show", "agent-1", "--full", "--json"))["steps"]
    }
    turns = [steps[key] for key in sorted(key for key in steps if key.endswith(".execute"))]
    assert len(turns) <= 8
    done = [turn["output"]["do"] for turn in turns]
    assert done == [*plan[: len(done)], "answer"][: len(done)]
    assert done[-1] == "answer"
    for number, turn in enumerate(turns[:-1]):
        observe(steps, number, turn["output"])
    # All that was said before is in the cache; what is new, and not what is long ago, is read.
    for turn in turns:
        usage = turn["usage"]
        assert usage["prompt_tokens"] > 400
        assert usage["prompt_tokens"] - usage["cached_tokens"] <= NEW_TOKENS


def observe(steps: dict[str, Any], number: int, decision: dict[str, Any]) -> None:
    """What the next turn is told is what the tool gave, which is what the data says."""
    next_input = steps[f"work[{number + 1}].execute"]["inputs"]["input"]
    if decision["do"] == "price":
        assert f"The price of a {decision['article']} is {PRICES[decision['article']]}" in next_input
    else:
        assert decision["expression"] in next_input


def test_a_task_that_is_never_done_ends_by_its_bounds(shell: Shell) -> None:
    workflow = (EXAMPLE / "workflow.yaml").read_text()
    endless = shell.folder / "endless.yaml"
    endless.write_text(workflow.replace('until: decision.do == "answer"', "until: false").replace("max: 8", "max: 3"))
    outputs = shell.outputs(endless, "--tools", EXAMPLE / "tools.py", "--input", "task=What does a tent cost?")
    assert outputs["exhausted"] is True
