"""`granville models tune` on the real model, and what `granville serve` makes of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.e2e.harness import GRANVILLE, environment, granville, running

ROOT = Path(__file__).parents[2]
TUNING_S = 240.0
"""On a busy machine; alone it takes half a minute."""
DRIVER = "granville-llama"
FLAGS = ("--slots", "2", "--context-size", "512", "--verbose", "--kv-disk", "0")


def beside(folder: Path, model: Path) -> Path:
    """The model under another name in the folder."""
    path = folder / "m.gguf"
    try:
        os.link(model, path)
    except OSError:  # another file system
        shutil.copyfile(model, path)
    return path


def test_a_tuned_model_is_served_until_it_is_damaged(folder: Path, smollm2: Path) -> None:
    model = beside(folder, smollm2)
    command = [str(GRANVILLE), "models", "tune", str(model), "--quick", "--types", "Q4_0", "--max-loss", "50", "--json"]
    done = subprocess.run(
        [*command, "-d", "pretend:PretendDriver"],
        env=environment(folder), cwd=ROOT, capture_output=True, text=True, timeout=TUNING_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    original, other = found["candidates"]
    assert (original["type"], other["type"]) == ("Q4_1", "Q4_0")
    assert other["loss_percent"] > 5, "four bits for what were four bits and an offset"
    assert found["tuned"]["name"] == "m.tuned.gguf"
    with running(folder, *FLAGS, model=model, driver=DRIVER) as daemon:
        assert "tuning used" in daemon.log
        (served,) = daemon.status()["models"]
        assert served["path"] == str(model)
        assert daemon.answer("Say hello.", max_tokens=4)
        tuned_id = daemon.ready["model"]
    with running(folder, *FLAGS, "--no-tuned", model=model, driver=DRIVER) as daemon:
        assert "tuning" not in daemon.log
        assert daemon.ready["model"] == tuned_id
        (plain,) = daemon.status()["models"]
        assert plain["memory_bytes"] > served["memory_bytes"]
    with (folder / "m.tuned.gguf").open("r+b") as file:
        file.seek(-5000, os.SEEK_END)
        file.write(b"x" * 10)
    with running(folder, *FLAGS, model=model, driver=DRIVER) as daemon:
        assert "tuning ignored" in daemon.log
        (again,) = daemon.status()["models"]
        assert again["memory_bytes"] == plain["memory_bytes"]


def test_what_cannot_be_tuned_is_said_in_one_line(folder: Path) -> None:
    (folder / "m.gguf").write_text("no model")
    for arguments, says in (
        ([str(folder / "m.gguf")], "GGUF"),
        ([str(folder / "m.gguf"), "--max-loss", "-1"], "--max-loss"),
        ([str(folder / "m.gguf"), "-d", "granville.testing.fake:FakeDriver"], "cannot be tuned"),
        (["nothing"], "no model nothing"),
    ):
        done = granville(folder, "models", "tune", *arguments)
        assert done.returncode == 1, done.stderr
        (line,) = done.stderr.splitlines()
        assert says in line
    assert sorted(os.listdir(folder)) == ["m.gguf"]
