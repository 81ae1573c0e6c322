"""Loading: what is wrong with a file or an option is one clear sentence, and llama.cpp says nothing unasked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from granville_llama import LlamaDriver
from granville_llama.threads import usable_cores

from granville.hosting.interface import Driver, DriverError, Failed, Model, ModelSpec
from tests.drivers import tiny_gguf
from tests.drivers.llama_jobs import job, load, run


def why(path: Path, slots: int = 4, context_size: int = 256, **options: object) -> str:
    with pytest.raises(DriverError) as caught:
        load(path, slots=slots, context_size=context_size, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_it_is_a_driver_that_costs_nothing_to_import() -> None:
    driver: Driver = LlamaDriver()
    assert (driver.name, isinstance(driver, Driver)) == ("granville-llama", True)
    code = "import granville_llama, sys; sys.exit('llama_cpp' in sys.modules or 'jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_loaded_model_says_what_it_is(noise: Path) -> None:
    model: Model = load(noise, slots=3, context_size=0)
    assert (model.slots, model.info.architecture, model.info.context_size) == (3, "llama", 4096)
    weights = noise.stat().st_size
    kv = 3 * 4096 * 2 * 2 * 64 * 2  # slots, tokens, layers, keys and values, size, bytes
    assert kv < model.info.memory_bytes < kv + weights
    assert model.capabilities.park
    model.close()


def test_the_default_context_is_the_models_own_if_smaller(models: Path) -> None:
    model = load(tiny_gguf.noise(models / "short.gguf", context_size=300), context_size=0)
    assert model.info.context_size == 300
    model.close()


def test_a_context_of_more_than_the_model_was_trained_for(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It gets its own, is told so, and serves."""
    short = tiny_gguf.noise(models / "trained.gguf", context_size=300)
    model = load(short, context_size=300)
    assert (model.info.context_size, caplog.text) == (300, "")
    memory = model.info.memory_bytes
    model.close()
    model = load(short, context_size=1_000_000)
    assert (model.info.context_size, model.info.memory_bytes) == (300, memory)
    assert "asked=1000000 context_size=300" in caplog.text
    answer = run(model, job("x", max_tokens=1000))["x"]
    assert (answer.reason, len(answer.tokens)) == ("length", 300 - 25)
    model.close()


def test_the_smallest_context_fails_jobs_and_nothing_else(noise: Path) -> None:
    model = load(noise, context_size=2)
    for _ in range(2):
        end = run(model, job("x"))["x"].end
        assert isinstance(end, Failed)
        assert (end.error, "25 tokens and the context 2" in end.message) == ("prompt_too_long", True)
    model.close()


def test_files_that_are_no_models(noise: Path, models: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("Once upon a time")
    (tmp_path / "cut.gguf").write_bytes(noise.read_bytes()[:-5000])
    (tmp_path / "header.gguf").write_bytes(noise.read_bytes()[:100])
    tiny_gguf.noise(tmp_path / "other.gguf", architecture="perceptron")
    assert "No such file" in why(tmp_path / "missing.gguf")
    assert "directory" in why(tmp_path)
    assert "not a GGUF file" in why(tmp_path / "text.gguf")
    assert "corrupted or incomplete" in why(tmp_path / "cut.gguf")
    assert "cannot be loaded" in why(tmp_path / "header.gguf")
    assert "unknown model architecture: 'perceptron'" in why(tmp_path / "other.gguf")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpu_layer": 1}, ("'gpu_layer'", "gpu_layers")),
        ({"gpu_layers": "all"}, ("gpu_layers", "'all'")),
        ({"gpu_layers": True}, ("gpu_layers", "True")),
        ({"flash_attention": 1}, ("flash_attention", "true or false")),
        ({"kv_type": "q9_9"}, ("kv_type", "q8_0", "'q9_9'")),
        ({"kv_type": "q8_0"}, ("kv_type", "flash_attention")),
        ({"batch_tokens": 8}, ("batch_tokens", "from 16 to 2048", "8")),
        ({"batch_tokens": "128"}, ("batch_tokens", "'128'")),
        ({"most_threads": -1}, ("most_threads", "-1")),
        ({"repack": "yes"}, ("repack",)),
        ({"slots": 0}, ("slots", "got 0")),
        ({"context_size": -1}, ("context_size", "-1")),
        ({"context_size": 1}, ("context_size", "1", "2 or more")),
    ],
)
def test_wrong_options_are_named(noise: Path, options: dict[str, object], words: tuple[str, ...]) -> None:
    message = why(noise, **options)  # type: ignore[arg-type]  # wrong kinds are what it is about
    assert all(word in message for word in words), message


def test_options_reach_llama_cpp(noise: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = ModelSpec(
        noise,
        slots=2,
        context_size=256,
        threads=1,
        verbose=True,
        options={"flash_attention": True, "kv_type": "q8_0", "gpu_layers": 0},
    )
    model = LlamaDriver().load(spec)
    assert run(model, job("x"))["x"].reason == "length"
    smaller = model.info.memory_bytes
    model.close()
    log = capfd.readouterr().err
    assert "q8_0" in log
    assert "flash_attn" in log
    model = load(noise, slots=2)
    assert model.info.memory_bytes > smaller
    model.close()


def test_llama_cpp_is_silent(noise: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = load(noise)
    run(model, job("x"))
    model.close()
    (tmp_path / "cut.gguf").write_bytes(noise.read_bytes()[:-5000])
    why(tmp_path / "cut.gguf")
    assert capfd.readouterr() == ("", "")


def test_cores_are_counted_once_and_within_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 6})
    for cpu, siblings in enumerate(("0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7")):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    quota = tmp_path / "cpu.max"
    assert usable_cores(tmp_path, quota) == 4, "no cgroup"
    quota.write_text("max 100000\n")
    assert usable_cores(tmp_path, quota) == 4
    quota.write_text("250000 100000\n")
    assert usable_cores(tmp_path, quota) == 2
    quota.write_text("50000 100000\n")
    assert usable_cores(tmp_path, quota) == 1
    assert usable_cores(tmp_path / "nothing", quota.with_name("none")) == 5, "no topology: all that are allowed"
