"""What a benchmark run found: a `Figure` a row, over all rounds, as a table and as JSON. Pure but for
`results_here` and the printing.

Rounds are interleaved (every subject once a round), so a ratio is taken within a round and its median reported: a
machine that is slower for a minute is so for both sides.
"""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, field
from rich.console import Console
from rich.table import Table

PIPE_COLUMNS = 150
"""Where there is no terminal to tell its width."""


class Goal(Struct, frozen=True):
    """What a figure should reach: `of` names the subject whose ratio counts; None is the first subject's value."""

    bound: float
    kind: Literal["at least", "at most"] = "at least"
    of: str | None = None

    def met(self, value: float) -> bool:
        return value >= self.bound if self.kind == "at least" else value <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.kind == "at least" else "≤"
        return f"{sign} {self.bound:g}{'' if self.of is None else ' × ' + self.of}"


class Figure(Struct, kw_only=True):
    """One measured quantity: for each subject a value a round. The first subject is what it is about."""

    scenario: str
    name: str
    unit: str
    values: dict[str, list[float]]
    goals: list[Goal] = field(default_factory=list)
    note: str = ""
    medians: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    """The first subject's to each other's."""
    met: list[bool] = field(default_factory=list)
    """A verdict for each goal."""
    samples: dict[str, list[float]] = field(default_factory=dict)
    """Single measurements, for a plot: columns of a table, or one list for each subject."""

    def conclude(self) -> Figure:
        """Medians, ratios and verdict from the values. Raises ValueError when a subject has none."""
        for subject, values in self.values.items():
            if not values:
                raise ValueError(f"{self.scenario}, {self.name}: nothing was measured for {subject}")
            self.medians[subject] = statistics.median(values)
        first, *others = self.values
        self.ratios = {other: ratio(self.values[first], self.values[other]) for other in others}
        own = self.medians[first]
        self.met = [goal.met(own if goal.of is None else self.ratios[goal.of]) for goal in self.goals]
        return self


class Results(Struct, kw_only=True):
    """A whole run with what it was made on."""

    date: str
    command: list[str]
    machine: dict[str, str]
    rounds: int
    figures: list[Figure]


def ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """The median over the rounds of one divided by the other. Raises ValueError when the rounds do not match."""
    return statistics.median(a / b if b else float(a != b) for a, b in zip(values, others, strict=True))


def tables(figures: Iterable[Figure]) -> list[Table]:
    """One table a scenario: a row a figure, a column a subject; in brackets how many times as large the first is."""
    scenarios: dict[str, list[Figure]] = {}
    for figure in figures:
        scenarios.setdefault(figure.scenario, []).append(figure)
    return [_table(name, rows) for name, rows in scenarios.items()]


def _table(name: str, figures: Sequence[Figure]) -> Table:
    subjects = list(dict.fromkeys(subject for figure in figures for subject in figure.values))
    notes = [figure.note for figure in figures if figure.note]
    table = Table(title=name, title_justify="left", title_style="bold")
    table.caption, table.caption_justify = "\n".join(notes) or None, "left"
    table.add_column("figure")
    table.add_column("unit")
    for subject in subjects:
        table.add_column(subject, justify="right")
    table.add_column("goal")
    for figure in figures:
        table.add_row(figure.name, figure.unit, *(cell(figure, s) for s in subjects), _verdict(figure))
    return table


def cell(figure: Figure, subject: str) -> str:
    """The median, and behind it the first subject's ratio to this one."""
    if subject not in figure.medians:
        return ""
    median = number(figure.medians[subject])
    return f"{median} (×{figure.ratios[subject]:.2f})" if subject in figure.ratios else median


def number(value: float) -> str:
    """Three significant digits, whole above a hundred."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _verdict(figure: Figure) -> str:
    verdicts = zip(figure.goals, figure.met, strict=True)
    return "\n".join(f"[green]{g} met[/green]" if met else f"[red]{g} missed[/red]" for g, met in verdicts)


def results_here(figures: list[Figure], rounds: int) -> Results:
    """Figures that were just measured on this machine."""
    return Results(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=sys.argv[1:],
        machine={"platform": platform.platform(), "python": platform.python_version()},
        rounds=rounds,
        figures=figures,
    )


def publish(results: Results, path: Path) -> None:
    """The tables on the terminal, and everything as JSON in `path`."""
    console = Console(width=None if Console().is_terminal else PIPE_COLUMNS)
    for table in tables(results.figures):
        console.print(table)
        console.print()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    console.print(f"written to {path}")
