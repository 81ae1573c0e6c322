"""`granville serve --manifest`, and drivers' options as a person gives them: what wins, and what is refused in time."""

from __future__ import annotations

from pathlib import Path

import pytest
from granville_llama.devices import can_offload

from tests.drivers import tiny_gguf
from tests.e2e import harness
from tests.e2e.harness import GRANVILLE, Daemon, granville, launched, running

MANIFEST = """\
name: kitchen
version: "1"
driver: granville-llama
driver_config: {batch_tokens: 64, threads: 1}
models:
  main: {source: ./main.gguf, context_size: 1024}
  mini: {source: ./mini.gguf, slots: 2}
server: {socket: g.sock, port: 0, queue_size: 7, workers: 3}
"""

LOUD = """\
class Loud(FakeDriver):
    name = "acme-granville-loud"
"""


@pytest.fixture
def manifest(folder: Path) -> Path:
    for name in ("main", "mini"):
        tiny_gguf.noise(folder / f"{name}.gguf")
    path = folder / "manifest.yaml"
    path.write_text(MANIFEST)
    return path


def started(folder: Path, *arguments: str) -> dict[str, str | int]:
    """What a daemon says of itself when it is ready: queue, and slots and context of each model; then it is ended."""
    command = [str(arg) for arg in (GRANVILLE, "serve", *arguments)]
    with (folder / "log").open("w+") as log, launched(command, folder, log) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("granville ready "), (folder / "log").read_text()
        socket = Path(next(word for word in line.split() if word.startswith("socket=")).removeprefix("socket="))
        daemon = Daemon(process, socket, folder / "log", line)
        status = daemon.status()
        found: dict[str, str | int] = {
            model["id"]: f"{model['slots']} x {model['context_size']}" for model in status["models"]
        }
        assert daemon.answer("one two", model_id=next(iter(found)), max_tokens=3)
        assert daemon.stop() == 0
        return found | {"queue": status["queue"]["limit"], "socket": str(socket)}


def test_all_of_it_comes_from_the_manifest(folder: Path, manifest: Path) -> None:
    found = started(folder, "--manifest", str(folder))
    assert found == {"main": "3 x 1024", "mini": "2 x 4096", "queue": 7, "socket": str(folder / "g.sock")}


def test_flags_and_names_go_before_it(folder: Path, manifest: Path) -> None:
    other = str(folder / "other.sock")
    flags = ("-s", other, "-q", "9", "--slots", "5", "--context-size", "512")
    found = started(folder, "mini", "--manifest", str(manifest), *flags)
    assert found == {"mini": "5 x 512", "queue": 9, "socket": other}


def test_the_environment_stands_between(folder: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = harness.environment(folder) | {
        "GRANVILLE_QUEUE_SIZE": "8", "GRANVILLE_SLOTS": "4", "GRANVILLE_DRIVER_CONFIG": "context_size=256 threads=1",
    }  # fmt: skip
    monkeypatch.setattr(harness, "environment", lambda home: own)
    found = started(folder, "--manifest", str(manifest), "-q", "9", "--driver-config", "context_size=128")
    assert found == {"main": "4 x 128", "mini": "4 x 128", "queue": 9, "socket": str(folder / "g.sock")}


def refused(folder: Path, *arguments: str, **variables: str) -> str:
    done = granville(folder, "serve", *arguments, **variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_wrong_option_is_refused_before_anything_is_fetched(folder: Path) -> None:
    """The model is one that does not exist: nobody came to look for it."""
    model = "pypi://no-such-package-anywhere==1/x.gguf"
    assert "--driver-config: gpu_layer: granville-llama has no such option; did you mean gpu_layers?" in refused(
        folder, model, "--driver-config", "gpu_layer=3"
    )
    assert "GRANVILLE_DRIVER_CONFIG: kv_type: expected one of" in refused(
        folder, model, GRANVILLE_DRIVER_CONFIG="kv_type=q9"
    )
    path = folder / "manifest.yaml"
    path.write_text(f"name: x\nmodels:\n  main:\n    source: {model}\n    flash_attention: on\n")
    assert refused(folder, "--manifest", str(path)) == (
        f"granville: {path}:5:5: flash_attention: expected true or false, got 'on'\n"
    )


def test_layers_for_a_gpu_on_a_build_without(folder: Path) -> None:
    if can_offload():
        pytest.skip("this build of llama.cpp has a GPU")
    model = tiny_gguf.noise(folder / "noise.gguf")
    said = refused(folder, str(model), "--driver-config", "gpu_layers=3")
    assert "has no GPU backend; `granville driver install" in said


def test_a_manifest_here_is_pointed_out(folder: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--manifest" not in refused(folder)
    monkeypatch.chdir(folder)
    assert "a model is required" in refused(folder)
    assert "`granville serve --manifest .`" in refused(folder)


@pytest.mark.parametrize("place", ["--isolate", "--no-isolate"])
def test_options_are_checked_wherever_the_driver_runs(folder: Path, place: str) -> None:
    (folder / "any.bin").touch()
    own = folder / "acme-granville-loud"
    own.mkdir()
    (own / "loud.py").write_text("from granville.testing.fake import FakeDriver\n\n\n" + LOUD)
    (own / "driver.json").write_text(
        '{"name": "acme-granville-loud", "version": "1", "abi": "python", "entry": "loud:Loud", '
        '"config": {"volume": 7}, "config_schema": {"properties": {"volume": {"type": "integer", "maximum": 11}}}}'
    )
    model = (str(folder / "any.bin"), "-d", str(own), place)
    said = refused(folder, *model, "--driver-config", "volume=12")
    assert said == "granville: --driver-config: volume: expected a whole number up to 11, got '12'\n"
    assert "did you mean volume?" in refused(folder, *model, "--driver-config", "volum=1")
    (own / "driver.json").write_text((own / "driver.json").read_text().replace("7", "70"))
    assert "driver.json of acme-granville-loud: volume: expected" in refused(folder, *model)


def test_options_by_their_drivers(folder: Path) -> None:
    """`--driver-config` of one driver is not held against the models of another."""
    model = tiny_gguf.noise(folder / "noise.gguf")
    both = f"{model}?driver=granville-llama"
    with running(folder, both, "--slots", "1", config={"decode_s": 0.001, "batch_tokens": 64}) as daemon:
        drivers = {entry["driver"] for entry in daemon.status()["models"]}
        assert drivers == {"fake", "granville-llama"}
