"""docs/crucible-language.md says what there is, and what it shows is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from granville.crucible.workflow.filters import filters, tests
from granville.crucible.workflow.model import Step, Workflow
from granville.crucible.workflow.reading import workflow_from
from granville.crucible.workflow.scope import RECORD

PAGE = (Path(__file__).parents[2] / "docs" / "crucible-language.md").read_text()
WORDS = set(re.findall(r"`([^`\n]+)`", PAGE))


@pytest.mark.parametrize("names", [Step.__struct_fields__, Workflow.__struct_fields__, filters, tests, RECORD])
def test_everything_is_named(names: tuple[str, ...]) -> None:
    assert {name.rstrip("_") for name in names} <= WORDS


def test_what_it_shows_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert workflow_from(example, tools=["calculate", "value"]).name == "sums"
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code)
    assert capsys.readouterr().out.strip() == code.rpartition("# ")[2].strip()
