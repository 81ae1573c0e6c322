"""`granville doctor` on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from tests.drivers import tiny_gguf
from tests.e2e.harness import Daemon, granville


def test_a_page_and_the_same_as_json(folder: Path, daemon: Daemon) -> None:
    page = granville(folder, "doctor", "-s", str(daemon.socket))
    assert (page.returncode, page.stderr) == (0, "")
    for words in ("Processor", "granville-llama", "llama.cpp", "version 0.1.0 on", "granville serve takes up to"):
        assert words in page.stdout
    assert "PROBLEM" not in page.stdout
    done = granville(folder, "doctor", "--json", "-s", str(daemon.socket))
    said = json.loads(done.stdout)
    assert said["verdict"] in ("ok", "note", "warn")
    assert {"section", "name", "value", "verdict", "fix"} == set(said["findings"][0])
    assert list(dict.fromkeys(finding["section"] for finding in said["findings"])) == [
        "Versions", "Drivers", "Processor", "GPU", "Memory", "Disk", "Models", "Daemon",
    ]  # fmt: skip


def test_it_judges_by_what_serve_is_to_get(folder: Path) -> None:
    (folder / "models").mkdir()
    tiny_gguf.noise(folder / "models" / "noise.gguf")
    flags = ("--slots", "3", "--context-size", "512", "-s", str(folder / "g.sock"))
    page = granville(folder, "doctor", *flags, GRANVILLE_MEMORY="1G", GRANVILLE_KV_DIR=str(folder / "states")).stdout
    assert "3 x 512 tokens" in page
    assert "takes up to 1.1 GB" in page
    assert str(folder / "states") in page
    assert f"none on {folder / 'g.sock'}" in page
    small = granville(folder, "doctor", *flags, "--memory", "100M").stdout
    assert "does not fit: it takes" in small
    assert "--slots: must be at least 1" in granville(folder, "doctor", "--slots", "0").stderr


def test_what_keeps_it_from_working_is_an_exit_status(folder: Path) -> None:
    (folder / "file").touch()
    home = str(folder / "file" / "home")
    done = granville(folder, "doctor", "-s", str(folder / "none" / "g.sock"), GRANVILLE_HOME=home)
    assert done.returncode == 1
    assert "PROBLEM" in done.stdout
    assert "cannot be written to by this user" in done.stdout
    assert f"there is no folder {folder / 'none'}" in done.stdout
    assert "Granville does not work here: 4 to put right." in done.stdout
