"""The right page is found, and an answer cites only what it was shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.examples.harness import EXAMPLES, Shell

EXAMPLE = EXAMPLES / "rag"
TOOLS = ("--tools", EXAMPLE / "tools.py")
QUESTIONS = EXAMPLE / "data" / "questions.json"


@pytest.fixture
def index(shell: Shell) -> Path:
    path = shell.folder / "handbook.db"
    shell.crucible("index", EXAMPLE / "data" / "handbook", "--into", path)
    return path


def test_every_question_names_a_page_that_is_there() -> None:
    pages = {page.name for page in (EXAMPLE / "data" / "handbook").glob("*.md")}
    questions = json.loads(QUESTIONS.read_text())
    assert len(questions) >= 24
    assert {one["source"] for one in questions} <= pages


def test_the_right_page_is_among_the_passages_that_are_answered_from(shell: Shell, index: Path) -> None:
    counts = shell.outputs(
        EXAMPLE / "evaluate.yaml", *TOOLS, "--input", f"index={index}", "--input-json", f"questions=@{QUESTIONS}"
    )
    # By this model all 32 were found when the example was written.
    assert counts["questions"] == 32
    assert counts["found"] >= 29


@pytest.mark.parametrize("number", [0, 24])
def test_an_answer_cites_passages_that_it_was_shown(shell: Shell, index: Path, number: int) -> None:
    asked = json.loads(QUESTIONS.read_text())[number]
    outputs = shell.outputs(
        EXAMPLE / "workflow.yaml", *TOOLS, "--input", f"index={index}", "--input", f"question={asked['question']}"
    )
    assert asked["source"] in outputs["sources"]
    assert 1 <= len(outputs["sources"]) <= 3
    text, marks = re.fullmatch(r"(?s)(.+?) ((?:\[\d+\])+)", outputs["answer"]).groups()  # type: ignore[union-attr]
    assert text.strip()
    cited = [int(mark) for mark in re.findall(r"\d+", marks)]
    assert len(cited) == len(set(cited)) <= 2
    assert all(1 <= mark <= len(outputs["sources"]) for mark in cited)
