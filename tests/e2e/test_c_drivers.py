"""Drivers in C under the whole daemon: the samples by path and by name, and one that cannot be stopped."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drivers import c_drivers
from tests.e2e.harness import Daemon, eventually, granville, is_ack, running, text_of


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return c_drivers.samples(tmp_path_factory.mktemp("echo"))


@pytest.fixture(scope="module", params=["--isolate", "--no-isolate"])
def v1(echo: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with (
        tempfile.TemporaryDirectory(prefix="granville-", dir="/tmp") as folder,
        running(Path(folder), request.param, driver=str(echo / "v1")) as daemon,
    ):
        yield daemon
        assert daemon.stop() == 0
        assert "level=ERROR" not in daemon.log


@pytest.fixture(scope="module", params=["--isolate", "--no-isolate"])
def v2(echo: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """By its installed name."""
    with tempfile.TemporaryDirectory(prefix="granville-", dir="/tmp") as folder:
        shutil.copytree(echo / "v2", Path(folder, "drivers", "granville-echo-v2"))
        with running(Path(folder), request.param, "--slots", "4", driver="granville-echo-v2") as daemon:
            yield daemon
            assert daemon.stop() == 0
            assert "level=ERROR" not in daemon.log


def test_v1_answers(v1: Daemon) -> None:
    assert v1.answer("one  two\nthree ü") == "one  two\nthree ü"
    assert v1.answer("one two three", stop=["two"]) == "one "
    assert v1.answer("one two three", max_tokens=1, reset_cache=True) == "one"
    (model,) = v1.ask({"op": "models"})["models"]
    assert (model["driver"], model["slots"]) == ("granville-echo-v1", 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": None, "messages": [{"role": "user", "content": "hello"}]},
        {"session_id": "s1"},
        {"grammar": 'root ::= "x"'},
        {"json_schema": {"type": "object"}},
        {"tools": [{"name": "go", "description": "goes", "parameters": {"type": "object"}}]},
        {"temperature": 0.1},
        {"seed": 7},
    ],
    ids=lambda fields: list(fields)[-1],
)
def test_v1_what_it_cannot_do_is_refused(v1: Daemon, fields: dict[str, object]) -> None:
    request = {"id": "refused", "text": "hello"} | fields
    reply = v1.ask({name: value for name, value in request.items() if value is not None})
    assert (reply["code"], reply["error"]) == (422, "unsupported")
    assert reply["message"].startswith(list(fields)[-1])


def test_v2_streams_word_by_word_to_several_clients(v2: Daemon) -> None:
    texts = {f"job-{n}": f"word-{n} two three four five six" for n in range(8)}
    with v2.connect() as client:
        client.send(*({"id": id, "text": text, "stream": True} for id, text in texts.items()))
        said: dict[str, list[str]] = {id: [] for id in texts}
        results: dict[str, str] = {}
        while len(results) < len(texts):
            message = client.receive()
            if "delta" in message:
                said[message["id"]].append(message["delta"])
            elif not is_ack(message):
                results[message["id"]] = text_of(message)
    assert results == texts == {id: "".join(parts) for id, parts in said.items()}
    assert v2.answer("one two three four", stop=["o th"]) == "one tw"
    (model,) = v2.status()["models"]
    assert (model["driver"], model["slots"], model["driver_stats"]) == ("granville-echo-v2", 4, {"slots": 4})


def test_v2_a_prompt_that_is_too_long(v2: Daemon) -> None:
    with v2.connect() as client:
        client.send({"id": "long", "text": "word " * 5000})
        error = client.end_of("long")
    assert (error["code"], error["message"]) == (413, "the prompt has 5000 tokens and the context 4096")


def test_a_socket_client_cannot_have_a_library_opened(v2: Daemon, echo: Path) -> None:
    for driver in (echo / "v1", echo / "v1" / "libgranville_echo_v1.so", "x.so", "os:system"):
        reply = v2.ask({"op": "load", "model": f"/etc/hostname?driver={driver}"})
        assert "give the name of an installed driver" in reply["message"]


def test_two_models_of_one_library_beside_each_other(echo: Path, folder: Path) -> None:
    file = folder / "second.bin"
    file.write_bytes(b"another")
    with running(folder, f"two:{file}?driver={echo / 'v1'}", driver=str(echo / "v2")) as daemon:
        assert daemon.answer("hello you", model_id="two") == "hello you"
        assert daemon.answer("hello") == "hello"
        assert sorted(model["driver"] for model in daemon.ask({"op": "models"})["models"]) == [
            "granville-echo-v1",
            "granville-echo-v2",
        ]
        assert daemon.stop() == 0


def test_a_call_that_cannot_be_stopped_holds_up_nobody_but_its_slot(folder: Path) -> None:
    """slow.c takes a tenth of a second a token. Whoever cancels, or has a deadline, is told while it still runs."""
    library = c_drivers.broken("slow", folder)
    with running(folder, driver=str(library)) as daemon, daemon.connect() as client:
        assert is_ack(client.ask({"id": "long", "text": "hello", "max_tokens": 25}))
        eventually(lambda: daemon.counts()["running"] == 1)
        assert daemon.ask({"op": "cancel", "id": "long"})["state"] == "cancelled"
        assert client.end_of("long")["code"] == 499
        assert daemon.ask({"op": "models"})["models"][0]["busy"], "the call still runs"
        client.send({"id": "late", "text": "hello", "max_tokens": 1, "timeout_ms": 100})
        assert client.end_of("late")["code"] == 408
        client.send({"id": "next", "text": "hello", "max_tokens": 1})
        assert text_of(client.end_of("next")) == "fine"
        client.send({"id": "dead", "text": "hello", "max_tokens": 20, "timeout_ms": 300})
        error = client.end_of("dead")
        assert (error["code"], "while the job was running" in error["message"]) == (408, True)
        assert daemon.ask({"op": "models"})["models"][0]["busy"]
        assert daemon.answer("hello", max_tokens=1) == "fine"
        assert daemon.stop() == 0


def test_a_call_that_never_returns_does_not_keep_the_daemon(folder: Path) -> None:
    library = c_drivers.broken("never_returns", folder)
    with running(folder, "--grace", "0.2", driver=str(library)) as daemon, daemon.connect() as client:
        client.send({"id": "a", "text": "hello", "timeout_ms": 300})
        assert client.end_of("a")["code"] == 408
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("returns_null", "granville_driver_generate returned NULL"),
        ("invalid_utf8", "not UTF-8"),
        ("step_fails", "the device is lost"),
        ("half_a_character", "not UTF-8"),
    ],
)
def test_what_a_driver_says_wrongly_is_never_an_answer(folder: Path, name: str, words: str) -> None:
    library = c_drivers.broken(name, folder)
    with running(folder, driver=str(library)) as daemon, daemon.connect() as client:
        client.send({"id": "a", "text": "hello"})
        error = client.end_of("a")
        assert (error["code"], error["error"]) == (502, "driver_failed")
        assert words in error["message"]
        assert daemon.stop() == 0


def test_a_library_that_is_none_is_told_at_the_command_line(folder: Path) -> None:
    for name, words in (("abi_99", "abi_version is 99"), ("missing_symbol", "lacks granville_driver_generate")):
        library = c_drivers.broken(name, folder)
        done = granville(folder, "serve", __file__, "-d", str(library), "-s", str(folder / "g.sock"))
        assert done.returncode != 0
        assert words in done.stderr
        assert "Traceback" not in done.stderr
