"""`granville driver new`: what it writes builds, keeps to the interface, and answers through the daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from granville.cli.main import main
from granville.hosting.cabi import header_path
from granville.hosting.samples import SAMPLES, sample_path
from tests.e2e.harness import GRANVILLE, running

ROOT = Path(__file__).parents[2]
SHORT = "--rounds 6"
LANGUAGES = {
    "c1": ("--lang", "c", "--abi", "1"),
    "c2": ("--lang", "c"),
    "python": ("--lang", "python"),
}
COMMON = {".gitignore", "Makefile", "README.md", "driver.json", "test_driver.py"}
ITS_OWN = {
    "c1": {"acme_granville_tpu.c", "granville_driver.h"},
    "c2": {"acme_granville_tpu.c", "granville_driver.h"},
    "python": {"acme_granville_tpu.py", "pyproject.toml"},
}


def written(folder: Path, abi: str, name: str = "acme-granville-tpu") -> Path:
    assert main(["driver", "new", name, *LANGUAGES[abi], "--dir", str(folder)]) == 0
    return folder / name


def make(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["make", "--no-print-directory", f"GRANVILLE={GRANVILLE}", f"PYTHON={sys.executable}", *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"GRANVILLE_ROUNDS": "6"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("abi", LANGUAGES)
def test_what_is_written_builds_and_keeps_to_the_interface(abi: str, folder: Path) -> None:
    driver = written(folder, abi)
    assert {path.name for path in driver.iterdir()} == COMMON | ITS_OWN[abi]
    for path in driver.iterdir():
        assert "@" not in path.read_text().replace("$@", ""), f"{path.name}: a place that nothing fills"
    manifest = json.loads((driver / "driver.json").read_text())
    assert (manifest["name"], manifest["abi"]) == ("acme-granville-tpu", abi)
    make(driver)
    said = make(driver, "check")
    assert "acme-granville-tpu 0.1.0" in said.splitlines()[-1]
    assert not [line for line in said.splitlines() if line.startswith(("fail", "warn"))]


@pytest.mark.parametrize("abi", LANGUAGES)
def test_what_is_written_answers_through_the_daemon(abi: str, folder: Path) -> None:
    driver = written(folder, abi)
    make(driver)
    with running(folder, driver=str(driver), config={}) as daemon:
        assert daemon.answer("as it was said") == "as it was said"
        assert daemon.stop() == 0


def test_its_own_test_passes(folder: Path) -> None:
    driver = written(folder, "python")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(driver)], capture_output=True, text=True,
        cwd=driver, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_the_python_start_is_a_package_with_its_entry_point(folder: Path) -> None:
    project = tomllib.loads((written(folder, "python") / "pyproject.toml").read_text())
    points = project["project"]["entry-points"]["granville.drivers"]
    assert points == {"acme-granville-tpu": "acme_granville_tpu:TpuDriver"}


def test_a_folder_that_is_there_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "acme-granville-tpu").mkdir()
    mine = folder / "acme-granville-tpu" / "mine.txt"
    mine.write_text("mine")
    assert main(["driver", "new", "acme-granville-tpu", "--lang", "c", "--dir", str(folder)]) != 0
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["acme-granville-tpu"]
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["tpu", "Acme-granville-tpu", "acme_granville_tpu", "../acme-granville-tpu", "granville-"]
)
def test_a_name_against_the_rules_is_refused(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["driver", "new", name, "--lang", "c", "--dir", str(folder)]) != 0
    assert "<vendor>-granville-<name>" in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_an_abi_of_python_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["driver", "new", "acme-granville-x", "--lang", "python", "--abi", "2", "--dir", str(folder)]) != 0
    assert "--abi: is for --lang c" in capsys.readouterr().err


def test_an_installed_granville_has_what_is_written() -> None:
    """What lies beside the package in a checkout comes into the wheel, where the code looks for it."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = config["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included[str(header_path().relative_to(ROOT))] == "granville/hosting/include/granville_driver.h"
    for abi, name in SAMPLES.items():
        assert included[str(sample_path(abi).relative_to(ROOT))] == f"granville/hosting/samples/{name}"
