"""How often the moderation workflow is right, as a table.

    python examples/moderation/evaluate.py              the sentences that nothing was chosen by
    python examples/moderation/evaluate.py tuning       those that the wording of the prompt was chosen by

Granville has to be there with a model of type inference. Options after the name go to `crucible run`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
LABELS = ("fine", "abuse", "spam", "private")
SETS = ("held_out", "tuning")
CRUCIBLE = Path(sys.executable).with_name("crucible")

Row = dict[str, str]


def sentences(name: str) -> list[Row]:
    """`text` and the right `label` of each."""
    rows: list[Row] = json.loads((HERE / "data" / f"{name}.json").read_text())
    return rows


def decide(rows: Sequence[Row], *options: str) -> list[dict[str, Any]]:
    """What the workflow makes of each sentence, in their order. Raises CalledProcessError."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as messages:
        json.dump([row["text"] for row in rows], messages)
        messages.flush()
        command = [str(CRUCIBLE), "run", str(HERE / "workflow.yaml"), "--input-json", f"messages=@{messages.name}"]
        command += ["--input", "reasons=false", "--json", *options]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    decisions: list[dict[str, Any]] = json.loads(printed)["decisions"]
    return decisions


def confusion(rows: Sequence[Row], decisions: Sequence[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """(right label, label given) → how often."""
    return Counter((row["label"], decision["label"]) for row, decision in zip(rows, decisions, strict=True))


def accuracy(counts: Counter[tuple[str, str]]) -> float:
    return sum(count for (right, given), count in counts.items() if right == given) / counts.total()


def as_table(counts: Counter[tuple[str, str]]) -> Table:
    table = Table(title="a row for what a sentence is, a column for what it was taken for", box=None)
    table.add_column("")
    for label in (*LABELS, "right"):
        table.add_column(label, justify="right")
    for right in LABELS:
        of_label = sum(counts[right, given] for given in LABELS)
        cells = [str(counts[right, given] or "·") for given in LABELS]
        table.add_row(right, *cells, f"{counts[right, right] / of_label:.0%}" if of_label else "")
    return table


def main() -> None:
    name, *options = sys.argv[1:] or ["held_out"]
    if name not in SETS:
        sys.exit(f"usage: evaluate.py [{'|'.join(SETS)} [OPTION OF crucible run...]]")
    rows = sentences(name)
    try:
        decisions = decide(rows, *options)
    except subprocess.CalledProcessError as error:  # it has said why
        sys.exit(error.returncode)
    counts = confusion(rows, decisions)
    console = Console()
    console.print(as_table(counts))
    right = counts.total() * accuracy(counts)
    console.print(f"\n{right:.0f} of {counts.total()} right ({accuracy(counts):.0%}); chance is {1 / len(LABELS):.0%}")
    for row, decision in zip(rows, decisions, strict=True):
        if decision["label"] != row["label"]:
            console.print(
                f"  {row['label']:>7} taken for {decision['label']:<7}  {row['text']}", markup=False, soft_wrap=True
            )


if __name__ == "__main__":
    main()
