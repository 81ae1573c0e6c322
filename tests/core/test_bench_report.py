"""What the benchmark's tables and the load generator's figures are made of: percentiles, rates, ratios, verdicts."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.docs import PAGE, PARTS, SECTION, write_tables
from benchmarks.plots import PLOTS, draw
from benchmarks.report import Figure, Goal, Results, ratio, tables
from granville.testing.latency import Record, percentile, spread, steady_rate, summarise

FLOATS = st.floats(min_value=0, max_value=1e6)


@given(st.lists(FLOATS, min_size=2, max_size=50))
def test_percentiles_are_those_of_the_standard_library(values: list[float]) -> None:
    ordered = sorted(values)
    expected = statistics.quantiles(ordered, n=100, method="inclusive")
    for percent in (1, 50, 90, 99):
        assert percentile(ordered, percent) == pytest.approx(expected[percent - 1])


@given(st.lists(FLOATS, min_size=1, max_size=50))
def test_percentiles_lie_between_the_extremes_and_rise(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert 1000 * min(values) <= found.p50 <= found.p90 <= found.p99 <= found.max == 1000 * max(values)
    assert found.count == len(values)


def test_nothing_measured_is_no_spread() -> None:
    assert spread([]) is None


def test_a_summary_counts_tokens_over_the_whole_run_and_latencies_of_what_succeeded() -> None:
    records = [
        Record(id="a", sent=10.0, accepted=10.001, pieces=[10.1, 10.2, 10.4], ended=11.0, completion_tokens=3),
        Record(id="b", sent=10.5, accepted=10.502, pieces=[11.5], ended=12.0, completion_tokens=1),
        Record(id="c", sent=10.0, accepted=10.003, ended=14.0, error="deadline_exceeded"),
        Record(id="d", sent=10.0, ended=10.0, error="queue_full"),
    ]
    summary = summarise(records)
    assert summary.duration_s == pytest.approx(4.0)
    assert summary.tokens_per_s == pytest.approx(4 / 4.0)
    assert summary.requests_per_s == pytest.approx(2 / 4.0)
    assert summary.failed == {"deadline_exceeded": 1, "queue_full": 1}
    assert summary.accepted_ms is not None
    assert summary.accepted_ms.count == 3
    assert summary.first_ms is not None
    assert summary.first_ms.p50 == pytest.approx((100 + 1000) / 2)
    assert summary.gap_ms is not None
    assert summary.gap_ms.max == pytest.approx(200)
    assert summary.total_ms is not None
    assert summary.total_ms.max == pytest.approx(1500)


def test_no_requests_cannot_be_summarised() -> None:
    with pytest.raises(ValueError, match="no requests"):
        summarise([])


def test_a_steady_rate_counts_only_the_window_that_all_streams_share() -> None:
    fast = Record(id="a", sent=0, pieces=[n / 10 for n in range(1, 21)])  # ten a second until 2.0
    slow = Record(id="b", sent=0, pieces=[n / 5 for n in range(1, 21)])  # five a second until 4.0
    assert steady_rate([fast, slow], after=1.0) == pytest.approx(15.0)


def test_streams_that_do_not_overlap_have_no_steady_rate() -> None:
    with pytest.raises(ValueError, match="no common window"):
        steady_rate([Record(id="a", sent=0, pieces=[1.0])], after=1.0)


def test_a_ratio_is_taken_within_each_round() -> None:
    """A machine that is half as fast in one round is so for both, and the ratio does not move."""
    assert ratio([200, 100, 200], [100, 50, 100]) == 2.0
    with pytest.raises(ValueError, match="shorter"):
        ratio([1, 2], [1])


def _figure(*goals: Goal) -> Figure:
    return Figure(
        scenario="s", name="n", unit="tokens/s", values={"us": [110, 100, 120], "them": [100, 100, 100]}, goals=[*goals]
    )


def test_a_figure_has_medians_ratios_and_a_verdict_for_each_goal() -> None:
    figure = _figure(Goal(1.05, of="them"), Goal(1.2, of="them"), Goal(100), Goal(100, "at most")).conclude()
    assert figure.medians == {"us": 110, "them": 100}
    assert figure.ratios == {"them": pytest.approx(1.1)}
    assert figure.met == [True, False, True, False]


def test_a_subject_without_values_is_an_error_and_not_a_hole_in_the_table() -> None:
    figure = Figure(scenario="s", name="n", unit="ms", values={"us": [1.0], "them": []})
    with pytest.raises(ValueError, match="nothing was measured for them"):
        figure.conclude()


def test_each_scenario_is_a_table_with_its_subjects_as_columns() -> None:
    other = Figure(scenario="t", name="n", unit="ms", values={"us": [1.0]}).conclude()
    first, second = tables([_figure().conclude(), other])
    assert [column.header for column in first.columns] == ["figure", "unit", "us", "them", "goal"]
    assert list(first.columns[3].cells) == ["100 (×1.10)"]
    assert [column.header for column in second.columns] == ["figure", "unit", "us", "goal"]


def test_the_page_takes_the_tables_of_what_was_measured_and_keeps_the_rest() -> None:
    figure = _figure(Goal(1.05, of="them")).conclude()
    figure.scenario = "Serving, 4 clients"
    machine = {"cpu": "a processor", "cores": "2", "llama-cpp-python": "1", "python": "3"}
    results = Results(
        date="2026-11-23T00:00:00", command=["--rounds", "3"], machine=machine, rounds=3, figures=[figure]
    )
    page = "# P\n<!-- serving -->\nold\n<!-- end -->\ntext\n<!-- kernel -->\nkept\n<!-- end -->\n"
    written = write_tables(page, results)
    assert "old" not in written
    assert "| n | tokens/s | 110 | 100 (×1.10) | ≥ 1.05 × them: met |" in written
    assert "benchmarks/bench.py --rounds 3, 3 rounds, 2026-11-23, a processor" in written
    assert "\ntext\n<!-- kernel -->\nkept\n<!-- end -->\n" in written
    assert write_tables(written, results) == written


def _plotted() -> Results:
    """A run with something for every plot."""
    bars = [
        Figure(
            scenario=f"Serving, {clients} clients",
            name=name,
            unit="",
            values={"granville": [2.0], "llama-server": [1.0]},
        )
        for clients in (4, 8)
        for name in ("throughput", "time to first token p50")
    ]
    gaps = Figure(
        scenario="A prompt of 1500 tokens",
        name="granville: gap in the streams, p99",
        unit="ms",
        values={"meanwhile": [60.0], "before": [20.0]},
        samples={"before": [19.0, 20.0, 21.0], "meanwhile": [50.0, 60.0]},
    )
    course = {
        "seconds": [-1.0, 0.0, 1.0],
        "threads": [2.0, 2.0, 1.0],
        "tokens_per_s": [90.0, 20.0, 50.0],
        "ended": [0.9],
    }
    threads = Figure(
        scenario="One busy program", name="throughput", unit="tokens/s", values={"granville": [50.0]}, samples=course
    )
    figures = [figure.conclude() for figure in (*bars, gaps, threads)]
    machine = {"cpu": "a processor", "cores": "2", "llama-cpp-python": "1", "python": "3"}
    return Results(date="2026-11-23T00:00:00", command=[], machine=machine, rounds=1, figures=figures)


def test_the_same_figures_give_the_same_plots(tmp_path: Path) -> None:
    results = _plotted()
    written = draw(results, tmp_path / "once")
    assert [path.name for path in written] == [plot.file for plot in PLOTS]
    again = draw(results, tmp_path / "again")
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]
    assert "clients" in written[0].read_text(), "words are text, not outlines"
    results.figures = [figure for figure in results.figures if not figure.samples]
    assert len(draw(results, tmp_path / "less")) == 2


def test_the_page_shows_the_plots_of_what_was_measured() -> None:
    page = write_tables("<!-- longprompt -->\n<!-- end -->\n<!-- kernel -->\n<!-- end -->\n", _plotted())
    assert "](plots/gaps.svg)\n" in page
    assert page.count("plots/") == 1


def test_every_part_of_the_page_is_known() -> None:
    assert set(SECTION.findall(PAGE.read_text())) == set(PARTS)
