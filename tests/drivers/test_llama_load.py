"""Loading: what is wrong with a file or an option is one clear sentence, and llama.cpp says nothing unasked."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from granville_llama import LlamaDriver, devices, options
from granville_llama.binding import KV_TYPES, c
from granville_llama.reader import POOLING
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
        ({"gpu_layers": -2}, ("gpu_layers", "-2", "-1 (all)")),
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


@dataclass
class Passed:
    """What llama.cpp was called with: its parameters as they were then, and what it says of the contexts it made."""

    models: list[dict[str, int]] = field(default_factory=list)
    contexts: list[dict[str, int]] = field(default_factory=list)
    made: list[dict[str, int]] = field(default_factory=list)


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Passed:
    passed = Passed()
    load_model, make_context = c.llama_model_load_from_file, c.llama_init_from_model

    def loading(path: bytes, params: Any) -> Any:
        passed.models.append({"n_gpu_layers": params.n_gpu_layers, "use_extra_bufts": params.use_extra_bufts})
        return load_model(path, params)

    def making(model: Any, params: Any) -> Any:
        names = ("n_ctx", "flash_attn_type", "type_k", "type_v", "offload_kqv", "op_offload", "n_threads")
        passed.contexts.append({name: getattr(params, name) for name in names})
        context = make_context(model, params)
        reads = ("n_ctx", "n_ctx_seq", "n_seq_max", "n_batch", "n_ubatch", "n_threads", "n_threads_batch")
        passed.made.append({name: getattr(c, f"llama_{name}")(context) for name in reads})
        return context

    monkeypatch.setattr(c, "llama_model_load_from_file", loading)
    monkeypatch.setattr(c, "llama_init_from_model", making)
    return passed


def test_options_reach_llama_cpp(noise: Path, passed: Passed) -> None:
    given = {"flash_attention": True, "kv_type": "q8_0", "gpu_layers": 0, "repack": False, "batch_tokens": 64}
    model = LlamaDriver().load(ModelSpec(noise, slots=2, context_size=512, threads=1, options=given))
    assert run(model, job("x"))["x"].reason == "length"
    smaller = model.info.memory_bytes
    model.close()
    assert passed.models == [{"n_gpu_layers": 0, "use_extra_bufts": False}]
    assert passed.contexts == [
        {
            "n_ctx": 1024,
            "flash_attn_type": 1,
            "type_k": 8,
            "type_v": 8,
            "offload_kqv": 0,
            "op_offload": 0,
            "n_threads": 1,
        }
    ]
    assert passed.made == [
        {
            "n_ctx": 1024, "n_ctx_seq": 512, "n_seq_max": 2, "n_batch": 64, "n_ubatch": 64, "n_threads": 1,
            "n_threads_batch": 1,
        }
    ]  # fmt: skip
    model = load(noise, slots=2, context_size=512)
    assert model.info.memory_bytes > smaller
    model.close()
    assert (passed.contexts[1]["flash_attn_type"], passed.contexts[1]["type_k"]) == (0, 1)


def test_a_context_size_and_threads_may_be_options_too(noise: Path, passed: Passed) -> None:
    given = {"context_size": 768, "threads": 1}
    model = LlamaDriver().load(ModelSpec(noise, slots=2, options=given))
    assert model.info.context_size == 768
    model.close()
    assert (passed.made[0]["n_ctx_seq"], passed.made[0]["n_threads"]) == (768, 1)
    model = LlamaDriver().load(ModelSpec(noise, slots=2, context_size=256, options=given))
    assert model.info.context_size == 256, "the field goes before the option"
    model.close()


@pytest.mark.skipif(devices.can_offload(), reason="this build of llama.cpp has a GPU")
@pytest.mark.parametrize("layers", [1, 35, -1])
def test_layers_for_a_gpu_that_is_not_there(noise: Path, passed: Passed, layers: int) -> None:
    message = why(noise, gpu_layers=layers)
    assert message.startswith(f"gpu_layers: {layers} asks for a GPU")
    assert "granville driver install granville-llama --accel" in message
    assert passed.models == [], "said before anything is loaded"


def test_what_a_build_without_a_gpu_says() -> None:
    assert "--accel metal" in devices.no_gpu(1, ["CPU", "BLAS"], "darwin")
    assert "--accel cuda|vulkan" in devices.no_gpu(1, ["CPU"], "linux")
    found_none = devices.no_gpu(1, ["CUDA", "CPU"], "linux")
    assert "(CUDA) finds none" in found_none
    assert "--accel" not in found_none


@pytest.mark.parametrize(("asked", "layers"), [({}, -1), ({"gpu_layers": 1}, 1), ({"gpu_layers": 0}, 0)])
def test_where_there_is_a_gpu(
    noise: Path, passed: Passed, monkeypatch: pytest.MonkeyPatch, asked: dict[str, int], layers: int
) -> None:
    """A build without one takes the parameters and computes on the CPU all the same."""
    monkeypatch.setattr(devices, "can_offload", lambda: True)
    model = load(noise, **asked)
    assert run(model, job("x"))["x"].reason == "length"
    model.close()
    assert passed.models[0]["n_gpu_layers"] == layers
    on_gpu = int(layers != 0)
    context = passed.contexts[0]
    assert (context["flash_attn_type"], context["offload_kqv"], context["op_offload"]) == (on_gpu, on_gpu, on_gpu)
    model = load(noise, flash_attention=False, **asked)
    model.close()
    assert passed.contexts[-1]["flash_attn_type"] == 0


def test_the_build_says_what_it_is_and_tries_a_model(alphabet: Path) -> None:
    command = [sys.executable, "-m", "granville_llama.devices", str(alphabet)]
    said = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert "CPU" in said["backends"]
    assert said["can_offload"] == bool(said["gpus"])
    assert Path(said["library"]).exists()
    assert said["trial"]["tokens"] > 0
    failed = subprocess.run([*command[:-1], "nothing.gguf"], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "nothing.gguf cannot be read" in failed.stderr


def test_the_schema_and_the_bindings_have_the_same_names() -> None:
    assert set(options.KV_TYPES) == set(KV_TYPES)
    assert set(options.VECTORS) == set(POOLING) - {"rank"}


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
