"""Two instances of SmolLM2 in one daemon: served, unloaded and loaded again from the command line, while jobs run."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from granville.models.identity import fingerprint, model_id
from tests.e2e.harness import Daemon, Map, eventually, granville, is_ack, launched, running, serve_command

FLAGS = ("--slots", "2", "--context-size", "512", "--threads", "1", "--strategy", "round-robin", "--no-http")


def ask(id: str, text: str, **fields: object) -> Map:
    return {"id": id, "text": text, "temperature": 0, "max_tokens": 4} | fields


@pytest.fixture(scope="module")
def twice(smollm2: Path) -> Iterator[Daemon]:
    with (
        tempfile.TemporaryDirectory(prefix="granville-", dir="/tmp") as path,
        running(Path(path), *FLAGS, model=f"{smollm2},second:{smollm2}", driver="granville-llama") as daemon,
    ):
        yield daemon
        assert daemon.stop() == 0
        assert daemon.log == ""


def models(daemon: Daemon) -> dict[str, Map]:
    return {model["id"]: model for model in daemon.ask({"op": "models"})["models"]}


def test_a_file_twice_is_two_models_that_say_the_same(twice: Daemon, smollm2: Path) -> None:
    first = model_id("llama", fingerprint(smollm2))
    listed = models(twice)
    assert list(listed) == [first, "second"]
    for model in listed.values():
        assert (model["type"], model["state"], model["slots"], model["busy"]) == ("inference", "ready", 2, False)
        assert (model["path"], model["driver"]) == (str(smollm2), "granville-llama")
        assert model["memory_bytes"] > smollm2.stat().st_size
        assert {"running", "waiting", "restarts", "last_error"} <= model.keys()
    with twice.connect() as client:
        client.send(*(ask(str(n), "Tell me something about the sea.") for n in range(4)))
        results = list(client.terminals(4).values())
    assert sorted(result["model_id"] for result in results) == sorted([first, "second"] * 2)
    assert len({result["tool_input_json"] for result in results}) == 1
    with twice.connect() as client:
        client.send(*(ask(f"n{n}", "Tell me something about the sea.", model_id="second") for n in range(3)))
        assert {result["model_id"] for result in client.terminals(3).values()} == {"second"}


def test_a_model_is_unloaded_while_it_runs_and_loaded_again(twice: Daemon, smollm2: Path, folder: Path) -> None:
    at = ("-s", str(twice.socket))
    with twice.connect() as client:
        client.send(ask("runs", "Write a long story.", model_id="second", max_tokens=40, stream=True))
        assert is_ack(client.receive())
        assert "delta" in client.receive()
        done = granville(folder, "unload", "second", *at)
        assert (done.returncode, done.stderr) == (0, "")
        result = client.end_of("runs")
        assert (result["model_id"], result["usage"]["completion_tokens"]) == ("second", 40)
    assert "second" not in models(twice)
    assert twice.ask(ask("gone", "x", model_id="second"))["error"] == "unknown_model"
    missing = granville(folder, "unload", "second", *at)
    assert (missing.returncode, missing.stderr.count("\n")) == (4, 1)
    table = granville(folder, "load", f"second:{smollm2}", "--slots", "1", *at)
    assert (table.returncode, "second" in table.stdout, "0/1" in table.stdout) == (0, True, True), table
    with twice.connect() as client:
        client.send(ask("back", "Say hello.", model_id="second"))
        assert client.end_of("back")["model_id"] == "second"
    conflict = granville(folder, "load", f"second:{smollm2}", "--slots", "2", *at)
    assert (conflict.returncode, "1" in conflict.stderr) == (3, True)
    again = granville(folder, "load", f"second:{smollm2}", "--json", *at)
    assert json.loads(again.stdout)["slots"] == 1


def test_concurrent_loads_are_one_and_answered_to_a_client_that_sends_no_more(twice: Daemon, smollm2: Path) -> None:
    clients = [twice.connect() for _ in range(3)]
    for client in clients:
        client.send({"op": "load", "model": f"third:{smollm2}", "slots": 1, "rid": 1})
        client.sock.shutdown(socket.SHUT_WR)
    replies = []
    for client in clients:
        with client:
            replies += client.rest()
    assert [(reply["model"]["id"], reply["model"]["state"], reply["rid"]) for reply in replies] == [
        ("third", "ready", 1)
    ] * 3
    assert twice.ask({"op": "unload", "model_id": "third", "force": True}) == {"model_id": "third", "state": "unloaded"}


def test_a_file_that_is_not_there_is_told_and_others_are_not_fetched(twice: Daemon) -> None:
    for model, words in (("/nowhere/a.gguf", "no file"), ("pypi://llm-nothing==1.0/a.gguf", "granville download")):
        reply = twice.ask({"op": "load", "model": model})
        assert (reply["error"], reply["code"]) == ("bad_request", 400)
        assert words in reply["message"]


def test_a_broken_file_beside_a_sound_one_is_tried_again(smollm2: Path, folder: Path) -> None:
    broken = folder / "broken.gguf"
    broken.write_bytes(b"GGUF nonsense")
    with running(folder, *FLAGS, model=f"bad:{broken},good:{smollm2}", driver="granville-llama") as daemon:
        listed = models(daemon)
        assert (listed["bad"]["state"], listed["good"]["state"]) == ("failed", "ready")
        assert str(broken) in listed["bad"]["last_error"]
        assert daemon.answer("Say hello.", max_tokens=4)
        broken.unlink()
        broken.symlink_to(smollm2)
        eventually(lambda: models(daemon)["bad"]["state"] == "ready")


def test_what_does_not_fit_is_refused_at_start_and_told_what_would(smollm2: Path, folder: Path) -> None:
    flags = ("--no-http", "--memory", "500M", "--slots", "8", "--context-size", "2048")
    with (folder / "log").open("w+") as log:
        command = serve_command(folder, *flags, model=smollm2, driver="granville-llama")
        with launched(command, folder, log) as process:
            assert process.wait(20) == 1
        log.seek(0)
        said = log.read()
    assert said.count("\n") == 1
    for figure in ("weights 98 MB", "8 slots x 2048 tokens x 23040 bytes = 377 MB", "--slots ", "--context-size "):
        assert figure in said, said
    advice = said.partition("What would fit: ")[2].split(" or ")[0].split()
    with running(
        folder, *flags[:3], *advice, "--context-size", "2048", model=smollm2, driver="granville-llama"
    ) as daemon:
        assert daemon.answer("Say hello.", max_tokens=4)
