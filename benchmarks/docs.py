"""Writes the tables of a benchmark run into docs/performance.md, between its `<!-- part -->` and `<!-- end -->`, and
its plots into docs/plots.

.venv/bin/python benchmarks/docs.py [build/bench/results.json]
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.peers import ROOT
from benchmarks.plots import draw, drawable
from benchmarks.report import Figure, Results, cell, number

PAGE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "plots"
RESULTS = ROOT / "build" / "bench" / "results.json"
PARTS = {
    "serving": "Serving",
    "leftover": "Four streams",
    "saturated": "The kernel's own thread",
    "critical": "A critical request behind",
    "kernel": "The kernel with",
    "startup": "Start-up",
    "prefix": "Eight clients behind",
    "longprompt": "A prompt of",
    "urgent": "A critical request beside",
    "sessions": "12 conversations",
    "warm": "Said beforehand",
    "neighbour": "One busy program",
    "churn": "1000 sessions",
    "tuned": "The embedded model tuned",
    "ranking": "Ranking by",
    "isolation": "The driver in a process",
    "machine": "The machine",
}
"""What the titles of a part's scenarios begin with."""
SECTION = re.compile(r"<!-- (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def write_tables(page: str, results: Results) -> str:
    """The page with the tables of these results; a part that was not measured keeps what it has."""

    def section(match: re.Match[str]) -> str:
        part = match[1]
        figures = [figure for figure in results.figures if figure.scenario.startswith(PARTS[part])]
        if not figures:
            return match[0]
        plots = "".join(f"\n![{plot.title}](plots/{plot.file})\n" for plot in drawable(figures))
        return f"<!-- {part} -->\n{_tables(figures)}\n{plots}{_origin(results)}\n<!-- end -->"

    return SECTION.sub(section, page)


def _tables(figures: Sequence[Figure]) -> str:
    scenarios = dict.fromkeys(figure.scenario for figure in figures)
    return "\n\n".join(_table(name, [f for f in figures if f.scenario == name]) for name in scenarios)


def _table(name: str, figures: Sequence[Figure]) -> str:
    subjects = list(dict.fromkeys(subject for figure in figures for subject in figure.values))
    rows = [[name, "unit", *subjects, "goal"], ["---"] * (len(subjects) + 3)]
    for figure in figures:
        goals = [
            f"{goal}: {'met' if met else '**missed**'}" for goal, met in zip(figure.goals, figure.met, strict=True)
        ]
        rows.append([figure.name, figure.unit, *(cell(figure, s) for s in subjects), "; ".join(goals)])
    notes = [f"\n{figure.note}" for figure in figures if figure.note]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), *notes])


def _origin(results: Results) -> str:
    machine = results.machine
    command = shlex.join(["benchmarks/bench.py", *results.command])
    return (
        f"\n*{command}, {results.rounds} round{'s' * (results.rounds > 1)}, {results.date[:10]}, {machine['cpu']}, "
        f"{number(float(machine['cores']))} cores, llama-cpp-python {machine['llama-cpp-python']}, "
        f"Python {machine['python']}.*"
    )


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    results = msgspec.json.decode(path.read_bytes(), type=Results)
    PAGE.write_text(write_tables(PAGE.read_text(), results))
    print(f"wrote the tables of {path} into {PAGE}")
    for plot in draw(results, PLOTS):
        print(f"wrote {plot}")


if __name__ == "__main__":
    main()
