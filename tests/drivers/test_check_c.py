"""Drivers in C under a conformance run: the samples pass, and broken ones fail with what their author needs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from granville.testing.conformance import Report, check_driver
from tests.drivers.c_drivers import ECHO, broken, describe, samples

SHORT_S = 1.5
"""For drivers that hang."""
PATIENCE_S = 30.0
HANGING = {"never_returns", "step_hangs"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples(tmp_path_factory.mktemp("echo"))


def checked(name: str, folder: Path, rounds: int = 6) -> Report:
    patience = SHORT_S if name in HANGING else PATIENCE_S
    return check_driver(str(broken(name, folder)), rounds=rounds, step_timeout_s=patience)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_samples_pass(version: str, built: Path) -> None:
    report = check_driver(str(built / version), rounds=20)
    assert report.passed, report.text()
    assert report.count("warn") == 0, report.text()
    assert (report.name, report.kind) == (f"granville-echo-{version}", f"C, ABI {version}")


def test_the_sample_in_python_passes(tmp_path: Path) -> None:
    folder = shutil.copytree(ECHO / "python", tmp_path / "python")
    report = check_driver(str(folder), rounds=20)
    assert report.passed, report.text()
    assert report.count("warn") == 0, report.text()


BROKEN = [
    ("missing_symbol", "driver", "lacks granville_driver_generate", "granville_driver.h"),
    ("null_entry", "driver", "has NULL for generate, its pointer 5 of 8", "granville_driver.h"),
    ("null_step", "driver", "granville_driver_vtable_v2 has NULL for step", "granville_driver.h"),
    ("abi_99", "driver", "abi_version is 99, and this Granville speaks 2", "granville_driver.h"),
    ("small_struct", "driver", "struct_size is 64", "granville_driver.h"),
    ("not_a_driver", "driver", "is no driver: it exports neither", "granville_driver.h"),
    ("name_null", "driver", "what granville_driver_get_version returns is NULL", "granville_driver.h"),
    ("name_not_utf8", "driver", "is not UTF-8", "granville_driver.h"),
    ("init_null", "model", "granville_driver_init returned NULL", "granville_driver_load_model"),
    ("load_null", "model", "granville_driver_load_model returned NULL", "granville_driver_load_model"),
    ("no_model", "model", "load returned GRANVILLE_OK and set no model", "struct granville_model_info"),
    ("park_null", "model", "gave GRANVILLE_CAN_PARK, and granville_driver_vtable_v2.park is NULL", "model_info"),
    ("aborts", "answer", "the process died of SIGABRT in step(), which is granville_driver_generate", "_generate"),
    ("overruns", "answer", "the process died of SIGSEGV in step(), which is granville_driver_generate", "_generate"),
    ("exits", "answer", "the process ended with exit status 7 in step()", "granville_driver_generate"),
    ("never_returns", "answer", "granville_driver_generate, had not returned after 1.5 s; the model's Capabiliti", ""),
    ("step_hangs", "answer", "step() had not returned after 1.5 s", "submit, step"),
    ("returns_null", "answer", "granville_driver_generate returned NULL", "granville_driver_generate"),
    ("invalid_utf8", "answer", "the driver's answer is not UTF-8, at byte 5", "granville_driver_generate"),
    ("huge_string", "answer", "the driver's answer has more than 16777216 bytes", "granville_driver_generate"),
    ("half_a_character", "answer", "is not UTF-8, at byte 0; an event has whole characters", "submit, step"),
    ("after_the_end", "answer", "an event of job 1, which does not run: it is unknown, or has ended", "submit, step"),
    ("unknown_job", "answer", "an event of job 77, which does not run", "submit, step"),
    ("step_fails", "answer", "the device is lost", "submit, step"),
    ("wrong_stats", "stats", "what stats() wrote cannot be read", "struct granville_driver_v2, stats"),
    ("leaks", "leaks-loads", "memory grew by", "granville_driver_unload_model"),
]


@pytest.mark.parametrize(("name", "failing", "words", "where"), BROKEN, ids=[name for name, *_ in BROKEN])
def test_a_broken_driver_fails_with_the_right_words(
    name: str, failing: str, words: str, where: str, tmp_path: Path
) -> None:
    report = checked(name, tmp_path)
    found = {finding.check: finding for finding in report.failures}
    assert failing in found, report.text()
    assert words in found[failing].seen
    assert where in found[failing].where


def test_what_only_reads_like_an_error_is_a_warning(tmp_path: Path) -> None:
    report = checked("error_as_text", tmp_path)
    (warning,) = [finding for finding in report.findings if finding.check == "answer"]
    assert (warning.verdict, report.passed) == ("warn", True)
    assert "reads like an error: 'Error: out of memory'" in warning.seen


def test_a_library_with_functions_and_no_vtable_passes(tmp_path: Path) -> None:
    report = checked("plain_symbols", tmp_path)
    assert report.passed, report.text()


def test_a_driver_json_that_says_something_else_fails(tmp_path: Path) -> None:
    folder = describe(broken("plain_symbols", tmp_path), version="2.0")
    (failure,) = check_driver(str(folder), rounds=0, only=["driver"]).failures
    assert "version is '2.0', and the driver itself says '1.0'" in failure.seen
