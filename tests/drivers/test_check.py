"""A conformance run: drivers that keep to the interface pass, and the report is one to act on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import gguf
import pytest

from granville.cli import exits
from granville.errors import StartupError
from granville.testing.conformance import Finding, Report, check_driver
from granville.testing.conformance.checks import RULES
from granville.testing.conformance.leaks import growth
from granville.testing.conformance.listing import all_checks
from granville.testing.conformance.report import lines_of
from tests.drivers import bert_gguf
from tests.e2e.harness import GRANVILLE

ROOT = Path(__file__).parents[2]
FAKE = "granville.testing.fake:FakeDriver"
ALWAYS = {*RULES, "step-time", "silence", "process-end"}


def verdicts(report: Report) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in report.findings}


def test_the_fake_driver_passes() -> None:
    report = check_driver(FAKE, rounds=20, options={"scores": True, "decode_s": 0.001})
    assert report.passed, report.text()
    assert verdicts(report).keys() == all_checks().keys() | ALWAYS
    for check in ("cancel", "park", "park-cancel", "stop", "score", "warm", "interrupt", "leaks-jobs", "leaks-loads"):
        assert verdicts(report)[check] == "pass", check


def test_granville_llama_passes(noise: Path) -> None:
    report = check_driver("granville-llama", model=noise, rounds=20)
    assert report.passed, report.text()
    skipped = {check for check, verdict in verdicts(report).items() if verdict == "skipped"}
    assert skipped <= {"c-symbols", "c-load", "c-cancel", "resume", "constrain", "tools", "hears", "speaks"}


def test_granville_llama_with_the_real_model_passes(smollm2: Path) -> None:
    only = ("answer", "max-tokens", "cancel")
    report = check_driver("granville-llama", model=smollm2, rounds=0, only=only)
    assert report.passed, report.text()
    assert {verdicts(report)[name] for name in only} == {"pass"}


def test_a_driver_of_vectors_passes(tmp_path: Path) -> None:
    model = bert_gguf.tiny(tmp_path / "reads.gguf", pooling=gguf.PoolingType.MEAN)
    report = check_driver("granville-llama", model=model, type="embedding", rounds=6)
    assert report.passed, report.text()
    assert verdicts(report)["park"] == verdicts(report)["stop"] == "skipped"
    assert verdicts(report)["cancel-frees"] == verdicts(report)["odd-text"] == "pass"


@pytest.mark.parametrize(("type", "check"), [("stt", "hears"), ("tts", "speaks")])
def test_drivers_of_sound_pass(type: str, check: str) -> None:
    report = check_driver(FAKE, type=type, rounds=6, options={"decode_s": 0.001, "park": False})
    assert report.passed, report.text()
    assert [found.check for found in report.findings if found.verdict == "warn"] == ["name"], "fake is no driver's name"
    assert verdicts(report)[check] == verdicts(report)["cancel-frees"] == verdicts(report)["odd-text"] == "pass"
    assert verdicts(report)["stop"] == verdicts(report)["max-tokens"] == "skipped"


def test_a_driver_json_says_what_its_models_are_loaded_as(tmp_path: Path) -> None:
    manifest = {"name": "acme-granville-x", "version": "1", "abi": "python", "entry": "driver:FakeDriver"}
    (tmp_path / "driver.json").write_text(json.dumps(manifest | {"capabilities": ["rerank", "embedding"]}))
    (tmp_path / "driver.py").write_text(
        "from granville.testing.fake import FakeDriver\nFakeDriver.name = 'acme-granville-x'\n"
    )
    report = check_driver(str(tmp_path), only=["answer", "stop"])
    assert report.passed, report.text()
    assert next(f.seen for f in report.findings if f.check == "answer").startswith("a value in")


def test_a_driver_that_wants_a_model_says_how_to_name_one() -> None:
    report = check_driver("granville-llama", rounds=0)
    (failure,) = report.failures
    assert failure.check == "model"
    assert "is not a GGUF file" in failure.seen
    assert "--model FILE" in failure.seen
    assert report.left_out, "all that needs a model is left out"


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"only": ["speed"]}, "there is no check 'speed'; there are driver, name,"),
        ({"slots": 0}, "slots: must be at least 1, got 0"),
        ({"type": "video"}, "type: there are checks for inference, ranker, embedding, rerank, stt, tts, not for video"),
        ({"step_timeout_s": 0.0}, "a timeout must be over 0 s"),
        ({"model": "/no/such.gguf"}, "there is no file /no/such.gguf"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(wish: dict[str, object], words: str) -> None:
    with pytest.raises(StartupError, match=re.escape(words)):
        check_driver(FAKE, **wish)  # type: ignore[arg-type]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(GRANVILLE), "driver", "check", *arguments, "--rounds", "6"], capture_output=True, text=True, check=False
    )


def test_the_command_prints_a_line_a_check_and_says_how_it_went() -> None:
    done = run(FAKE, "--only", "name,cancel")
    assert (done.returncode, done.stderr) == (exits.OK, "")
    *lines, summary = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line[0] != " "][:4] == ["driver", "name", "model", "answer"]
    assert re.fullmatch(r"fake 1 \(Python\): \d+ passed, 1 with a warning", summary)


def test_the_command_fails_with_the_driver_and_says_what_is_right() -> None:
    done = run(FAKE, "--only", "model", "--driver-config", "load_error=the weights are gone")
    assert done.returncode == exits.FAILED
    assert re.search(r"^fail +model +.*the weights are gone", done.stdout, re.MULTILINE)
    assert re.search(r"^ +right: load\(\) returns a Model.*\(interface: Model", done.stdout, re.MULTILINE)


def test_the_report_as_json() -> None:
    done = run(FAKE, "--only", "name", "--json")
    assert done.returncode == exits.OK
    report = json.loads(done.stdout)
    assert (report["name"], report["version"], report["kind"]) == ("fake", "1", "Python")
    assert {"check", "verdict", "seen", "right", "where"} <= report["findings"][0].keys()


def test_ctrl_c_ends_the_command_and_its_child() -> None:
    command = [str(GRANVILLE), "driver", "check", FAKE, "--driver-config", "load_s=600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the first check is done: the second waits in a load
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == exits.INTERRUPTED
    assert gone(process.pid), "a child is left in its process group"


def test_its_child_ends_with_a_command_that_is_killed() -> None:
    command = [str(GRANVILLE), "driver", "check", FAKE, "--driver-config", "load_s=600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.wait()
    assert gone(process.pid), "a child is left in its process group"


def gone(group: int) -> bool:
    """Whether no process of a group is left, soon."""
    for _ in range(300):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_growth_once_is_no_leak() -> None:
    """A cache is filled in the first rounds and then stays."""
    kept: list[bytearray] = []

    def once(number: int) -> None:
        if 5 < number < 15:
            kept.append(bytearray(b"x") * 1_000_000)

    assert "40 jobs" in growth(40, once, 0, "job")


@pytest.mark.parametrize("verdict", ["fail", "warn"])
def test_what_is_not_right_is_followed_by_what_would_be(verdict: str) -> None:
    finding = Finding(check="c", verdict=verdict, seen="S", right="R", where="W", detail=("D",))  # type: ignore[arg-type]
    assert [line.strip() for line in lines_of(finding)] == [f"{verdict:<8} c                S", "right: R (W)", "| D"]


def test_a_report_of_nothing_has_not_passed() -> None:
    assert not Report(driver="x").passed


def test_the_documents_name_every_check() -> None:
    page = (ROOT / "docs" / "drivers.md").read_text()
    section = page[page.index("## Check it") :].split("\n## ")[0]
    named = set(re.findall(r"`([a-z0-9-]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE))))
    assert named == all_checks().keys() | ALWAYS
