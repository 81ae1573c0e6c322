"""The ranking prompt, and what scores mean."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.scheduling import ranking
from granville.scheduling.priority import Priority
from granville.scheduling.ranking import LABELS, SAMPLES, calibration, choose, prompt, text_to_rank
from granville.wire.messages import ChatMessage, Request

SENTENCES = Path(__file__).parents[1] / "ranking"


def test_the_beginning_of_the_prompt_never_changes() -> None:
    one, other = prompt("fire"), prompt("a joke")
    assert one.endswith("\nRequest: fire ->")
    assert one.removesuffix("fire ->") == other.removesuffix("a joke ->")
    for label in LABELS:
        assert one.count(f" ->{label}\n") == 4


def test_nothing_that_is_judged_by_was_in_what_the_model_is_told() -> None:
    told = {*SAMPLES, *(text for text, _ in ranking._EXAMPLES)}
    assert len(told) == len(SAMPLES) + 16
    judged: set[str] = set()
    for name in ("sentences", "fresh"):
        requests = tomllib.loads((SENTENCES / f"{name}.toml").read_text())["requests"]
        assert Counter(each["class"] for each in requests) == {priority.wire: 20 for priority in Priority}
        judged |= {each["text"] for each in requests}
    assert len(judged) == 160
    assert not told & judged


@given(
    st.lists(st.lists(st.floats(-50, 0), min_size=4, max_size=4), min_size=1, max_size=8),
    st.lists(st.floats(-30, 0), min_size=4, max_size=4),
    st.sampled_from(Priority),
)
def test_a_model_s_taste_for_a_label_is_taken_off(
    samples: list[list[float]], taste: list[float], priority: Priority
) -> None:
    """Whatever a model adds to each label's score, always, its ranks are the same."""
    shown = [0.0] * 4
    shown[priority] = 100.0
    offsets = calibration([[a + b for a, b in zip(sample, taste, strict=True)] for sample in samples])
    assert choose([a + b for a, b in zip(shown, taste, strict=True)], offsets) is priority


@pytest.mark.parametrize("best", [Priority.HIGH, Priority.NORMAL, Priority.LOW])
def test_what_may_be_critical_is(best: Priority) -> None:
    """A critical request that is missed costs more than another that goes first."""
    for behind, chosen in (
        (0.0, Priority.CRITICAL),
        (ranking.CRITICAL_MARGIN - 0.01, Priority.CRITICAL),
        (ranking.CRITICAL_MARGIN + 0.01, best),
    ):
        scores = [-20.0] * 4
        scores[best], scores[Priority.CRITICAL] = -1.0, -1.0 - behind
        assert choose(scores, (0.0,) * 4) is chosen


def test_scores_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError):
        choose([0.0, 1.0], (0.0,) * 4)


def test_the_last_user_turn_is_what_is_ranked() -> None:
    turns = [("system", "s"), ("user", "first"), ("assistant", "a"), ("user", "the  last\n one"), ("assistant", "b")]
    request = Request(id="x", messages=[ChatMessage(role, content) for role, content in turns])
    assert text_to_rank(request) == "the last one"
    assert text_to_rank(Request(id="x", messages=[ChatMessage("system", "s")])) == ""


@given(st.text(alphabet=st.sampled_from("ab é漢😀\n"), max_size=3000))
def test_a_long_text_is_cut_in_the_middle(text: str) -> None:
    shown = text_to_rank(Request(id="x", text=text))
    assert "\n" not in shown
    assert len(shown.encode()) <= 2 * ranking.MOST_BYTES
    if len(text.encode()) <= 100:
        assert shown == " ".join(text.split())


def test_head_and_tail_of_a_long_text_are_kept_without_personal_data() -> None:
    text = "Fire at bob@example.com! " + "blah " * 1000 + "Call 555-123-4567 at once"
    shown = text_to_rank(Request(id="x", text=text))
    assert shown.startswith("Fire at [email]!")
    assert shown.endswith("Call [phone] at once")
    assert "…" in shown
    assert len(shown) < 150
