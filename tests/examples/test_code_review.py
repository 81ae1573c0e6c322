"""Every file of a diff is reviewed, and findings point into it."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.examples.harness import EXAMPLES, Shell

EXAMPLE = EXAMPLES / "code-review"
DIFF = (EXAMPLE / "data" / "orders.diff").read_text()


def hunks(diff: str) -> dict[str, list[range]]:
    """The new lines of each file's hunks."""
    found: dict[str, list[range]] = {}
    for line in diff.splitlines():
        if line.startswith("+++ b/"):
            found[line.removeprefix("+++ b/")] = []
        elif match := re.match(r"@@ -\S+ \+(\d+),(\d+) @@", line):
            start, count = map(int, match.groups())
            found[[*found][-1]].append(range(start, start + count))
    return found


def check(outputs: dict[str, Any], diff: str) -> int:
    """How many findings there are; each has to be in its place."""
    there = hunks(diff)
    assert [one["file"] for one in outputs["files"]] == [*there]
    findings = [(one["file"], finding) for one in outputs["files"] for finding in one["findings"]]
    for file, finding in findings:
        assert any(finding["line"] in lines for lines in there[file])
        assert finding["severity"] in ("high", "medium", "low")
        assert finding["problem"].strip()
    return len(findings)


def test_the_planted_defects_lie_in_the_diff() -> None:
    there = hunks(DIFF)
    planted = json.loads((EXAMPLE / "data" / "planted.json").read_text())
    assert planted
    assert all(any(one["line"] in lines for lines in there[one["file"]]) for one in planted)


def test_findings_point_into_the_hunks_of_their_files(shell: Shell) -> None:
    outputs = shell.outputs(EXAMPLE / "workflow.yaml", "--input-file", f"diff={EXAMPLE / 'data' / 'orders.diff'}")
    found = check(outputs, DIFF)
    # A small model finds something everywhere; that it is right is not asked of it.
    assert found >= 1
    assert outputs["summary"].strip()
    assert outputs["summary"] != "Nothing was found."


def test_a_diff_comes_by_a_pipe_and_findings_are_bounded(shell: Shell) -> None:
    one_file = DIFF[DIFF.index("diff --git a/README.md") :]
    outputs = shell.outputs(
        EXAMPLE / "workflow.yaml", "--input-file", "diff=-", "--input", "findings_a_hunk=1", stdin=one_file
    )
    assert check(outputs, one_file) <= 1


def test_an_empty_diff_has_nothing_to_be_found(shell: Shell) -> None:
    outputs = shell.outputs(EXAMPLE / "workflow.yaml", "--input", "diff=")
    assert outputs == {"files": [], "summary": "Nothing was found."}
