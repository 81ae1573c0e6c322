"""Broken drivers in Python: each fails, in the check that is for it, with the words that its author needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from granville.testing.conformance import Report, check_driver

HERE = Path(__file__).parent
PATIENCE_S = 30.0
SHORT_S = 1.5
"""For drivers that hang."""


@pytest.fixture(autouse=True)
def found_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)


def checked(name: str, *only: str, rounds: int = 20) -> Report:
    patience = SHORT_S if name in HANGING else PATIENCE_S
    return check_driver(f"broken_python:{name}", rounds=rounds, step_timeout_s=patience, only=only)


def test_the_driver_that_they_are_made_of_passes() -> None:
    report = checked("Good")
    assert report.passed, report.text()
    assert (report.name, report.version) == ("acme-granville-broken", "1.0")
    assert report.count("warn") == 0, report.text()


HANGING = {"Hangs", "HangsAlone", "NothingComes", "Tuple", "ScoreLies"}
BROKEN = [
    ("TokenAfterEnd", "answer", "one-end", "Token for job 'job-1' after its Finished"),
    ("TwoEnds", "answer", "one-end", "Finished for job 'job-1' after its Finished"),
    ("UnknownJob", "answer", "known-jobs", "Token for 'somebody-else', which was never submitted"),
    ("StepRaises", "answer", "answer", "step() raised KeyError: 'no such tensor'"),
    ("StepRaisesLater", "odd-text", "odd-text", "raised UnicodeError: what is this?"),
    ("Hangs", "answer", "answer", "step() had not returned after 1.5 s; the model's Capabilities.interruptible is T"),
    ("HangsAlone", "answer", "answer", "returned after 1.5 s; the model's Capabilities.interruptible is F"),
    ("NothingComes", "answer", "answer", "job 'job-1' is stuck"),
    ("NeverEnds", "answer", "answer", "goes on without an end"),
    ("Leaks", "leaks-jobs", "leaks-jobs", "memory grew by"),
    ("LeaksFiles", "leaks-loads", "leaks-loads", "more files are open after 6 loads"),
    ("WrongTypes", "answer", "events", "step() returned a list with a dict in it"),
    ("WrongUsage", "answer", "events", "usage of job 'job-1' is Usage(prompt_tokens=1.5"),
    ("Tuple", "answer", "events", "step() returned a tuple, not a list"),
    ("Bytes", "answer", "token-text", "Token.text of job 'job-1' is a bytes, not str: b'river'"),
    ("HalfCharacters", "answer", "token-text", "half a character in it (a lone surrogate): 'river\\udcff'"),
    ("OddErrors", "empty-text", "job-errors", "has error 'oops'; the names are bad_request,"),
    ("FewerSlots", "all-slots", "all-slots", "slots is 4, and of job 3: submit('job-"),
    ("MoreSlots", "model", "model", "slots is 64, and 4 were asked for"),
    ("CancelKeeps", "cancel-frees", "cancel-frees", "after 4 jobs were cancelled their slots are not free: submit('"),
    ("CancelLate", "cancel", "after-cancel", "Token for job 'job-1' after cancel('job-1') had returned"),
    ("CancelSlow", "cancel", "cancel", "cancel() took 1.2"),
    ("CancelRaises", "cancel-unknown", "cancel-unknown", "cancel('never-seen-"),
    ("ParkLies", "park", "park", "raised NotImplementedError: park"),
    ("ParkForgets", "park", "park", "differ from character 6 on: 'river lamp stone"),
    ("ParkSilent", "park", "park", "the next steps did not say Parked"),
    ("ScoreLies", "score", "score", "is stuck: "),
    ("WarmLies", "warm", "events", "0 values for a Warm, which has one"),
    ("TypeLies", "model", "model", "loaded as inference, its capabilities name embedding"),
    ("NoStop", "stop", "stop", "with stop=("),
    ("TooMany", "max-tokens", "max-tokens", "max_tokens was 1 and the answer has 48 tokens"),
    ("InterruptRaises", "interrupt", "interrupt", "interrupt() from another thread raised RuntimeError"),
    ("StatsWrong", "stats", "stats", "stats() has 'running': []"),
    ("Exits", "answer", "answer", "step() called sys.exit(3); a driver never ends its process"),
    ("ExitsHard", "answer", "answer", "the process ended with exit status 0 in step(): a driver never ends its"),
    ("Crashes", "cancel", "cancel", "the process died of SIGSEGV in cancel('job-1')"),
    ("Lingers", "model", "process-end", "the process had not ended 5 s after all was closed"),
    ("CrashesAtEnd", "model", "process-end", "the process died of SIGSEGV at its end"),
    ("LoadsAnything", "wrong-path", "wrong-path", "load() of a path where nothing is returned a model"),
    ("LoadRaises", "wrong-path", "wrong-path", "raised FileNotFoundError"),
    ("LoadsOnce", "two-models", "two-models", "one model is loaded already"),
    ("Incomplete", "model", "model", "that lacks limit_cache, interrupt"),
    ("BadName", "name", "name", "name is '': it is empty"),
    ("Restless", "name", "name", "version was '1."),
    ("Missing", "driver", "driver", "has no attribute 'Missing'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "only", "failing", "words"), BROKEN, ids=[name for name, *_ in BROKEN])
def test_a_broken_driver_fails_with_the_right_words(name: str, only: str, failing: str, words: str) -> None:
    report = checked(name, only)
    found = {finding.check: finding for finding in report.failures}
    assert failing in found, report.text()
    assert words in found[failing].seen
    assert found[failing].right
    assert found[failing].where
    assert not report.passed


def test_what_it_said_last_comes_with_a_crash() -> None:
    (failure,) = checked("Crashes", "cancel").failures
    said = "\n".join(failure.detail)
    assert "about to touch what is not mine" in said
    assert "Segmentation fault" in said
    assert "broken_python.py" in said, "Python tells where it was"


def test_where_it_hangs_comes_with_a_hang() -> None:
    (failure,) = checked("Hangs", "answer").failures
    assert any("broken_python.py" in line and "in step" in line for line in failure.detail)


def test_the_traceback_comes_with_an_exception() -> None:
    (failure,) = checked("StepRaises", "answer").failures
    assert any('raise KeyError("no such tensor")' in line for line in failure.detail)
    assert not any("conformance" in line for line in failure.detail)


def test_after_a_crash_the_other_checks_go_on() -> None:
    report = checked("Crashes", "cancel", "cancel-unknown", "stop", "leaks-jobs", rounds=6)
    verdicts = {finding.check: finding.verdict for finding in report.findings}
    assert verdicts["cancel"] == verdicts["cancel-unknown"] == "fail"
    assert verdicts["stop"] == "pass"


def test_what_needs_a_check_that_failed_is_skipped_and_says_so() -> None:
    report = checked("StepRaises", "park", "idle")
    skipped = {finding.check: finding.seen for finding in report.findings if finding.verdict == "skipped"}
    assert skipped["park"] == "it needs cancel-frees"
    assert skipped["idle"] == "it needs answer"


def test_a_driver_that_always_dies_is_given_up() -> None:
    report = checked("CrashesOften")
    assert report.failures
    assert any("brought its process down 5 times" in finding.seen for finding in report.findings)


def test_a_driver_that_talks_is_warned() -> None:
    report = checked("Talkative", "model")
    (warning,) = [finding for finding in report.findings if finding.verdict == "warn"]
    assert (warning.check, warning.detail) == ("silence", ("loading, one moment",))
    assert report.passed
