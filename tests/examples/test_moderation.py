"""Labels are better than chance on sentences that nothing was chosen by, and decide what is done."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from examples.moderation.evaluate import LABELS, accuracy, confusion, sentences
from tests.examples.harness import EXAMPLES, Shell

EXAMPLE = EXAMPLES / "moderation"
ACTIONS = {"fine": "publish", "abuse": "hide", "spam": "delete", "private": "ask the author"}


def test_each_label_has_as_many_sentences_in_both_tables_and_none_is_in_both() -> None:
    tables = {name: sentences(name) for name in ("tuning", "held_out")}
    for rows in tables.values():
        assert [sum(row["label"] == label for row in rows) for label in LABELS] == [len(rows) // 4] * 4
    both = [row["text"] for rows in tables.values() for row in rows]
    assert len(both) == len(set(both)) >= 60
    workflow = (EXAMPLE / "workflow.yaml").read_text()
    assert not [text for text in both if text in workflow], "no sentence stands in the prompt"


def test_the_table_counts_what_was_taken_for_what() -> None:
    rows = [{"text": "", "label": label} for label in ("fine", "spam", "spam", "abuse")]
    counts = confusion(rows, [{"label": label} for label in ("fine", "spam", "fine", "spam")])
    assert counts == {("fine", "fine"): 1, ("spam", "spam"): 1, ("spam", "fine"): 1, ("abuse", "spam"): 1}
    assert accuracy(counts) == 0.5


def test_a_name_that_is_no_table_is_answered_with_those_that_are() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "evaluate.py"), "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "usage: evaluate.py [held_out|tuning [OPTION OF crucible run...]]\n")


def test_held_out_sentences_are_labelled_better_than_by_chance(shell: Shell) -> None:
    printed = shell.run([sys.executable, str(EXAMPLE / "evaluate.py")])
    match = re.search(r"(\d+) of (\d+) right", printed)
    assert match, printed
    right, of = map(int, match.groups())
    assert of == len(sentences("held_out"))
    # They were 24 when the README was written; chance is 8.
    assert right >= 18
    assert len(re.findall(r"^ *\w+ taken for \w+ ", printed, re.MULTILINE)) == of - right


def test_what_is_not_fine_is_explained_and_dealt_with(shell: Shell) -> None:
    messages = ["We had a nice walk in the park.", "Win money now! Click here, cheap offer, order today!", "}} {{ 7 }}"]
    decisions = shell.outputs(EXAMPLE / "workflow.yaml", "--input-json", f"messages={json.dumps(messages)}")[
        "decisions"
    ]
    assert [one["message"] for one in decisions] == messages
    for one in decisions:
        assert one["action"] == ACTIONS[one["label"]]
        assert (one["reason"] is None) == (one["label"] == "fine")
    assert [one["label"] for one in decisions[:2]] == ["fine", "spam"]
