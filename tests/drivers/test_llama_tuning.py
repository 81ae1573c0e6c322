"""The driver's tuning commands: a model rewritten, read and timed, each in a process of its own."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import trio
from granville_llama import LlamaDriver

from granville.hosting.interface import ModelSpec
from granville.hosting.tuner import TuningFailed, run_command
from granville.models.measure import Outcome, Wish, tune
from granville.models.tuned import read_tuning, tuned_path, with_tuning
from tests.drivers import tiny_gguf
from tests.drivers.llama_jobs import job, load, run

MODULE = LlamaDriver.tuning_module


def silent(share: float) -> None:
    assert 0 <= share <= 1


def size_of(path: Path) -> int:
    return path.stat().st_size


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


async def command(**fields: object) -> dict[str, object]:
    return await run_command(MODULE, fields, silent)


async def test_the_driver_says_what_it_can() -> None:
    said = await command(op="describe")
    assert said["threads"] >= 1  # type: ignore[operator]
    assert "Q8_0" in said["types"]  # type: ignore[operator]


async def test_a_rewritten_model_loads_and_answers(noise: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.part"
    done = await command(op="quantise", source=str(noise), target=str(target), type="Q4_0")
    mixed = await command(op="quantise", source=str(noise), target=str(tmp_path / "mixed"), type="Q8_0/Q4_0")
    assert done["size_bytes"] == size_of(target)
    assert done["size_bytes"] < mixed["size_bytes"] < size_of(noise)  # type: ignore[operator]
    model = load(target)
    assert run(model, job("x", max_tokens=4))["x"].reason == "length"
    model.close()


async def test_perplexity_is_the_same_each_time_and_tells_formats_apart(noise: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.part"
    await command(op="quantise", source=str(noise), target=str(target), type="Q4_0")
    first, again, other = [
        (await command(op="perplexity", path=str(path), tokens=600))["losses"] for path in (noise, noise, target)
    ]
    assert first == again != other
    assert isinstance(first, list)
    assert len(first) == 2 * 510, "two windows of 512, each with a token before the first that is judged"
    assert all(math.isfinite(loss) and loss >= 0 for loss in first)


async def test_a_model_that_knows_the_text_is_not_surprised(tmp_path: Path) -> None:
    """This one is sure of an "h" after anything."""
    path = tiny_gguf.alphabet(tmp_path / "h.gguf", {token: tiny_gguf.token("h") for token in range(262)})
    losses = (await command(op="perplexity", path=str(path), tokens=500))["losses"]
    assert isinstance(losses, list)
    assert min(losses) == pytest.approx(0, abs=0.05)
    assert max(losses) > 5


async def test_speeds_are_of_each_setting(noise: Path) -> None:
    settings = [
        {"threads": 1, "batch_tokens": 32, "kv_type": "f16"},
        {"threads": 1, "batch_tokens": 64, "kv_type": "f32", "sequences": []},
    ]
    found = await command(op="speed", path=str(noise), settings=settings, prefill_tokens=100, steps=2, sequences=[1, 3])
    speeds: Any = found["speeds"]
    first, second = speeds
    assert set(first["decode"]) == {"1", "3"}
    assert second["decode"] == {}
    assert first["prefill"] > 0 < second["prefill"]
    assert found["memory_bytes"] > size_of(noise)  # type: ignore[operator]


async def test_what_is_wrong_is_said(noise: Path, tmp_path: Path) -> None:
    with pytest.raises(TuningFailed, match="not Q9"):
        await command(op="quantise", source=str(noise), target=str(tmp_path / "x"), type="Q9")
    with pytest.raises(TuningFailed, match="open"):
        await command(op="perplexity", path=str(tmp_path / "missing"), tokens=1)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "ended by SIGILL"),
        ("print('hello')", "no line of the protocol"),
        ("raise ValueError('oh')", "ValueError: oh"),
        ("", "ended with 0"),
    ],
)
async def test_a_crash_costs_the_command_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, says: str
) -> None:
    (tmp_path / "crashing.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TuningFailed, match=says):
        await run_command("crashing", {"op": "speed"}, silent)


class Faster(LlamaDriver):
    """Its Q4_0 is said to be fast."""

    tuning_module = "tests.drivers.pretend_tuning"


async def tuned(path: Path, *, keep: bool = True, max_loss_percent: float = 0.5) -> Outcome:
    shares: list[float] = []
    wish = Wish(types=("Q4_0",), max_loss_percent=max_loss_percent)
    outcome = await tune(path, Faster(), wish, lambda what, share: shares.append(share), lambda outcome: keep)
    assert shares[-1] == 1
    return outcome


async def test_the_winner_is_kept_and_served(tmp_path: Path) -> None:
    path = tiny_gguf.noise(tmp_path / "m.gguf")
    outcome = await tuned(path, max_loss_percent=500)
    assert outcome.tuning.tuned is not None
    assert read_tuning(path) == outcome.tuning
    assert names(tmp_path) == ["m.gguf", "m.tuned.gguf", "m.tuned.json"]
    spec = with_tuning(ModelSpec(path, slots=2, context_size=256), Faster())
    assert spec.path == tuned_path(path)
    model = LlamaDriver().load(spec)
    assert run(model, job("x", max_tokens=4))["x"].reason == "length"
    model.close()


async def test_a_loss_is_not_kept_and_an_old_file_goes(tmp_path: Path) -> None:
    path = tiny_gguf.noise(tmp_path / "m.gguf")
    tuned_path(path).write_bytes(b"old")
    outcome = await tuned(path)
    assert outcome.tuning.tuned is None
    assert outcome.tuning.candidates[1].problem == "loses more than 0.5 %"
    assert names(tmp_path) == ["m.gguf", "m.tuned.json"]


async def test_nothing_is_left_of_a_tuning_that_is_refused_or_cancelled(tmp_path: Path) -> None:
    path = tiny_gguf.noise(tmp_path / "m.gguf")
    await tuned(path, keep=False, max_loss_percent=500)
    assert names(tmp_path) == ["m.gguf"]
    with trio.CancelScope() as scope:

        def cancel(what: str, share: float) -> None:
            if "timing" in what:
                scope.cancel()

        await tune(path, LlamaDriver(), Wish(), cancel, lambda outcome: True)
    assert scope.cancelled_caught
    assert names(tmp_path) == ["m.gguf"]


def test_the_settings_reach_the_engine(noise: Path) -> None:
    spec = ModelSpec(noise, slots=2, context_size=256, options={"most_threads": 1, "batch_tokens": 64})
    model = LlamaDriver().load(spec)
    assert model.stats()["threads"] == 1
    assert run(model, job("x", text="y" * 150, max_tokens=2))["x"].reason == "length"
    model.close()
