"""Draws a benchmark run: SVGs for docs/performance.md, the same bytes for the same figures.

Colours are Okabe and Ito's, which the colour-blind tell apart, and lie apart in lightness too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.report import Figure, Results, number
from granville.testing.latency import percentile

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#777777"
PEERS = ("llama-server", "llama-server, its best")
STYLE: Any = {
    "svg.hashsalt": "granville",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
}
SIZE_INCHES = (7.2, 3.8)
THROUGHPUT_TITLE = "Tokens per second: Granville ÷ llama.cpp's server"
FIRST_TITLE = "Time to first token, median: Granville ÷ llama.cpp's server"
GAPS_TITLE = "Four streams while a prompt of 1 500 tokens is read"
THREADS_TITLE = "Threads beside a busy program"


@dataclass(frozen=True, slots=True)
class Plot:
    """One file in docs/plots."""

    file: str
    title: str
    inches: tuple[float, float]
    select: Callable[[Sequence[Figure]], list[Figure]]
    """What of a run it shows; nothing when that was not measured."""
    paint: Callable[[Canvas, list[Figure]], None]


def draw(results: Results, folder: Path) -> list[Path]:
    """Write what can be drawn of these results; a plot whose figures were not measured is left as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in drawable(results.figures):
        path = folder / plot.file
        with mpl.rc_context(STYLE):
            canvas = painted(plot, results.figures)
            FigureCanvasSVG(canvas)
            canvas.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        written.append(path)
    return written


def drawable(figures: Sequence[Figure]) -> list[Plot]:
    return [plot for plot in PLOTS if plot.select(figures)]


def painted(plot: Plot, figures: Sequence[Figure]) -> Canvas:
    """Within `mpl.rc_context(STYLE)`."""
    canvas = Canvas(figsize=plot.inches, layout="constrained", facecolor="white")
    plot.paint(canvas, plot.select(figures))
    return canvas


def _served(name: str) -> Callable[[Sequence[Figure]], list[Figure]]:
    def select(figures: Sequence[Figure]) -> list[Figure]:
        return [f for f in figures if f.scenario.startswith("Serving, ") and f.name == name and PEERS[0] in f.ratios]

    return select


def _with_samples(start: str) -> Callable[[Sequence[Figure]], list[Figure]]:
    def select(figures: Sequence[Figure]) -> list[Figure]:
        return [figure for figure in figures if figure.scenario.startswith(start) and figure.samples]

    return select


def _ratios(canvas: Canvas, found: list[Figure], title: str, better: str) -> None:
    """Bars: our figure as a multiple of the peer's, by clients."""
    axes = canvas.subplots()
    places = range(len(found))
    width = 0.38
    for shift, peer, colour, hatch in zip((-0.5, 0.5), PEERS, (BLUE, ORANGE), ("", "//"), strict=True):
        values = [figure.ratios.get(peer, 0.0) for figure in found]
        bars = axes.bar(
            [place + shift * width for place in places],
            values,
            width * 0.94,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=f"against {peer}",
        )
        axes.bar_label(bars, [f"×{value:.2f}" for value in values], padding=2, fontsize=9)
    axes.axhline(1.0, color="black", linewidth=1, linestyle="--")
    axes.set_xticks(list(places), [figure.scenario.removeprefix("Serving, ") for figure in found])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(f"ratio ({better})")
    axes.set_ylim(0, 1.25 * max(1.0, *(ratio for figure in found for ratio in figure.ratios.values())))
    axes.set_title(title)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)


def _gaps(canvas: Canvas, found: list[Figure]) -> None:
    """Curves: which part of the gaps in the streams is longer than so much, before a long prompt and meanwhile."""
    axes = canvas.subplots()
    for figure, colour in zip(found, (BLUE, ORANGE), strict=False):
        who = figure.name.partition(":")[0]
        median = percentile(sorted(figure.samples["before"]), 50)
        for when, line in (("before", "--"), ("meanwhile", "-")):
            gaps = sorted(gap / median for gap in figure.samples[when])
            left = [1 - place / len(gaps) for place in range(len(gaps))]
            axes.step(gaps, left, where="pre", color=colour, linestyle=line, linewidth=1.8, label=f"{who}, {when}")
    axes.axvline(3.5, color=GREY, linewidth=1, linestyle=":")
    axes.annotate(
        "goal for p99",
        (3.5, 0.985),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        va="top",
        fontsize=9,
        color=GREY,
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"×{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.set_xlabel("gap between two texts of a stream, as a multiple of its median before")
    axes.set_ylabel("gaps that are longer")
    axes.grid(visible=True, axis="x")
    axes.set_title(GAPS_TITLE)
    axes.legend(loc="upper right")


def _threads(canvas: Canvas, found: list[Figure]) -> None:
    """Two curves over time: threads in use, tokens a second; a band where the busy program runs."""
    samples = found[0].samples
    seconds, ended = samples["seconds"], samples["ended"][0]
    upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    _band(upper, ended)
    _band(lower, ended)
    upper.step(seconds, samples["threads"], where="post", color=BLUE, linewidth=2)
    most = max(samples["threads"])
    upper.set_ylim(0, most + 0.4)
    upper.set_yticks(range(int(most) + 1))
    upper.set_ylabel("threads")
    upper.set_title(THREADS_TITLE)
    upper.annotate(
        "a program loops on a core",
        (ended / 2, 0.08),
        xycoords=("data", "axes fraction"),
        ha="center",
        va="bottom",
        fontsize=9,
    )
    lower.plot(seconds, samples["tokens_per_s"], color=GREEN, linewidth=1.8)
    lower.set_ylim(bottom=0)
    lower.set_ylabel("tokens per second")
    lower.set_xlabel("seconds since it began")
    pinned = found[0].medians.get("one pinned thread")
    if pinned is not None:
        lower.hlines(pinned, 0, ended, color="black", linewidth=1.2, linestyle="--")
        lower.annotate(
            f"one pinned thread, {number(pinned)}",
            (ended, pinned),
            xytext=(-4, -14),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=9,
        )


def _band(axes: Axes, ended: float) -> None:
    axes.axvspan(0, ended, color=ORANGE, alpha=0.2, linewidth=0)


PLOTS = (
    Plot(
        "throughput.svg", THROUGHPUT_TITLE, SIZE_INCHES, _served("throughput"),
        partial(_ratios, title=THROUGHPUT_TITLE, better="higher is better"),
    ),
    Plot(
        "first-token.svg", FIRST_TITLE, SIZE_INCHES, _served("time to first token p50"),
        partial(_ratios, title=FIRST_TITLE, better="lower is better"),
    ),
    Plot("gaps.svg", GAPS_TITLE, SIZE_INCHES, _with_samples("A prompt of"), _gaps),
    Plot("threads.svg", THREADS_TITLE, (SIZE_INCHES[0], 4.4), _with_samples("One busy program"), _threads),
)  # fmt: skip
