"""The demo's verdict: it must not call a run good in which urgent requests came last, failed, or said nothing."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from granville.cli.demo import QUESTIONS, Board, Row, find_faults
from granville.errors import DeadlineExceeded


def answered() -> list[Row]:
    return [
        Row("low-1", "low", "?", place=1, text="a"),
        Row("low-2", "low", "?", place=4, text="b"),
        Row("critical-1", "critical", "?", place=2, text="c"),
        Row("critical-2", "critical", "?", place=3, text="d"),
    ]


def test_answers_in_the_order_of_their_classes_are_no_fault() -> None:
    assert find_faults(answered()) == []


def test_a_critical_request_that_starts_last_is_a_fault() -> None:
    rows = answered()
    rows[1].place, rows[3].place = 3, 4
    (fault,) = find_faults(rows)
    assert fault.startswith("critical-2 ")


def test_a_failed_or_empty_answer_is_a_fault() -> None:
    rows = answered()
    rows[0].error = DeadlineExceeded("300 s have passed")
    rows[2].text = " "
    assert find_faults(rows) == ["low-1 failed: 300 s have passed", "critical-1 has an empty answer"]


def test_the_questions_come_least_urgent_first_and_in_all_classes() -> None:
    classes = [priority for priority, _ in QUESTIONS]
    assert classes == sorted(classes, key=["low", "normal", "high", "critical"].index)
    assert set(classes) == {"low", "normal", "high", "critical"}


@pytest.mark.parametrize("terminal", [True, False])
def test_events_are_lines_where_there_is_no_terminal(terminal: bool) -> None:
    shown = io.StringIO()
    row = Row("high-1", "high", "?")
    board = Board(Console(file=shown, force_terminal=terminal, width=100), [row], began=0.0, now=lambda: 1.5)
    board.event(row, "started", "as #1 [0.2 s]")
    assert row.state == "started"
    assert shown.getvalue() == ("" if terminal else "  1.500 s  high-1      started   as #1 [0.2 s]\n")
