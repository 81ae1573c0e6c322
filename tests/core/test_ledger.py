"""What a conformance run says of events of sound that break a rule."""

from __future__ import annotations

from typing import Any

import pytest

from granville.hosting.interface import Audio, Embed, Output, Speak, Task, Token, Transcribe, Usage
from granville.testing.conformance.ledger import Ledger

SPEAK, HEAR = Speak("j", "hello"), Transcribe("j", b"x")
SEGMENTS = [{"start": 0.0, "end": 1.0, "text": "a"}]


def broken(task: Task, *events: Any) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    ledger = Ledger(lambda rule, seen: found.append((rule, seen)))
    ledger.submitted(task)
    ledger.take(list(events))
    return found


def test_what_is_right_breaks_nothing() -> None:
    assert not broken(SPEAK, Audio("j", b"ab", 8_000), Audio("j", b"", 8_000), Output("j", {"duration_s": 1}, Usage()))
    heard = {"language": None, "duration_s": 1.0, "segments": SEGMENTS}
    assert not broken(HEAR, Token("j", "a"), Output("j", heard, Usage()))


@pytest.mark.parametrize(
    ("task", "event", "said"),
    [
        (SPEAK, Audio("j", b"a", 8_000), "not bytes of whole 16-bit samples"),
        (SPEAK, Audio("j", bytearray(2), 8_000), "a bytearray, not bytes"),  # type: ignore[arg-type]
        (SPEAK, Audio("j", b"ab", 0), "sample_rate is 0"),
        (SPEAK, Audio("j", b"ab", 8_000.0), "sample_rate is 8000.0"),  # type: ignore[arg-type]
        (SPEAK, Output("j", {"duration_s": 0.0}, Usage()), "no Audio came before it"),
        (SPEAK, Token("j", "hello"), "gives no text"),
        (HEAR, Audio("j", b"ab", 8_000), "gives no sound"),
        (HEAR, Token("j", "a", (1,)), "has token_ids"),
        (HEAR, Output("j", {"language": "en", "duration_s": 1.0}, Usage()), "no transcript: Object missing required"),
        (HEAR, Output("j", {"language": "en", "duration_s": "1", "segments": []}, Usage()), "duration_s"),
        (Embed("j", ("a",)), Token("j", "a"), "gives no text"),
    ],
)
def test_what_is_wrong_is_told(task: Task, event: Any, said: str) -> None:
    ((rule, seen),) = broken(task, event)
    assert rule == "events"
    assert said in seen


def test_a_job_has_one_rate() -> None:
    ((_, seen),) = broken(SPEAK, Audio("j", b"ab", 8_000), Audio("j", b"ab", 16_000))
    assert "was 8000 before" in seen
