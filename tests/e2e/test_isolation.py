"""Drivers that bring their process down, under a daemon that has clients: nothing is lost, and nothing comes twice."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.harness import (
    Client,
    Daemon,
    Map,
    eventually,
    is_ack,
    is_terminal,
    is_there,
    launched,
    running,
    serve_command,
    text_of,
)

FAULTY = "tests.drivers.faulty:FaultyDriver"
CLIENTS = 8


def process_of(daemon: Daemon) -> int:
    (model,) = daemon.status()["models"]
    assert isinstance(model["pid"], int)
    return model["pid"]


def prompt(number: int, count: int = 40) -> str:
    return " ".join(f"w{number}-{place}" for place in range(count))


class Streams:
    """What comes on one connection for many jobs."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.deltas: dict[str, str] = defaultdict(str)
        self.ends: dict[str, Map] = {}

    def read(self, until: Callable[[], object]) -> None:
        while not until():
            message = self._client.receive()
            if is_terminal(message):
                assert message["id"] not in self.ends, "two terminal messages"
                self.ends[message["id"]] = message
            elif "delta" in message:
                assert message["id"] not in self.ends, "a delta after the end"
                self.deltas[message["id"]] += message["delta"]
            else:
                assert is_ack(message)


@pytest.mark.parametrize("fault", ["abort", "hang"])
def test_it_costs_eight_streaming_clients_nothing(folder: Path, fault: str) -> None:
    """One of them brings the driver down in the middle of its answer, once."""
    config = {"step_s": 0.01, "once": str(folder / "once")}
    flags = ("--slots", str(CLIENTS), "--step-timeout", "3", "--no-http")
    prompts = {f"job-{n}": prompt(n) for n in range(CLIENTS)}
    prompts["job-3"] = prompts["job-3"].replace("w3-20", fault)
    with running(folder, *flags, driver=FAULTY, config=config) as daemon, daemon.connect() as client:
        first = process_of(daemon)
        client.send(*({"id": id, "text": text, "stream": True} for id, text in prompts.items()))
        streams = Streams(client)
        streams.read(lambda: len(streams.ends) == CLIENTS)
        (model,) = daemon.status()["models"]
        assert (model["restarts"], model["isolated"]) == (1, True)
        assert model["pid"] != first
        assert not is_there(first)
    assert streams.deltas == prompts
    for id, end in streams.ends.items():
        assert text_of(end) == prompts[id]
        assert end["usage"]["completion_tokens"] == 40


def test_the_job_that_brings_it_down_twice_is_named_and_takes_no_other_with_it(folder: Path) -> None:
    flags = ("--slots", "4", "--no-http")
    with running(folder, *flags, driver=FAULTY, config={"step_s": 0.01}) as daemon, daemon.connect() as client:
        prompts = {f"good-{n}": prompt(n) for n in range(3)} | {"bad": "a secret abort c"}
        client.send(*({"id": id, "text": text, "stream": True, "client": "somebody"} for id, text in prompts.items()))
        streams = Streams(client)
        streams.read(lambda: len(streams.ends) == 4)
        bad = streams.ends.pop("bad")
        assert (bad["error"], bad["code"]) == ("driver_failed", 502)
        assert "for the second time: the driver's process was ended by SIGABRT" in bad["message"]
        assert {id: text_of(end) for id, end in streams.ends.items()} == {
            id: text for id, text in prompts.items() if id != "bad"
        }
        assert streams.deltas["bad"] == "a secret"
        assert daemon.status()["models"][0]["restarts"] == 2
        assert "job lost job='bad'" in daemon.log
        assert "somebody" in daemon.log
        assert "secret" not in daemon.log


def test_what_a_driver_cannot_go_on_with_runs_again_unless_it_was_read(folder: Path) -> None:
    config = {"step_s": 0.01, "resume": False, "once": str(folder / "once")}
    flags = ("--slots", "2", "--no-http")
    with running(folder, *flags, driver=FAULTY, config=config) as daemon, daemon.connect() as client:
        client.send({"id": "read", "text": prompt(1), "stream": True}, {"id": "unread", "text": "a b c abort d"})
        ended = client.terminals(2)
    assert (ended["read"]["error"], ended["read"]["code"]) == ("driver_failed", 502)
    assert text_of(ended["unread"]) == "a b c abort d"


def test_it_ends_between_two_jobs_and_no_job_is_blamed(folder: Path) -> None:
    with running(folder, "--no-http", driver=FAULTY) as daemon:
        for _ in range(3):
            before = process_of(daemon)
            os.kill(before, signal.SIGKILL)
            eventually(lambda: daemon.status()["models"][0]["pid"] not in (None, before))  # noqa: B023 - in this round
            assert daemon.answer("a b") == "a b"


def test_the_daemons_end_is_its_end(folder: Path) -> None:
    """kill -9 of the daemon, while the driver keeps the interpreter of its process to itself."""
    command = serve_command(folder, "--no-http", driver=FAULTY)
    with (folder / "log").open("w") as log, launched(command, folder, log) as process:
        assert process.stdout is not None
        daemon = Daemon(process, folder / "g.sock", folder / "log", process.stdout.readline())
        pid = process_of(daemon)
        with daemon.connect() as client:
            assert is_ack(client.ask({"id": "x", "text": "a hang", "stream": True}))
            assert client.receive()["delta"] == "a"
            daemon.signal(signal.SIGKILL)
            daemon.wait()
        eventually(lambda: not is_there(pid))


def test_a_hung_driver_does_not_hold_the_daemons_end_up(folder: Path) -> None:
    with running(folder, "--no-http", "--grace", "0.1", driver=FAULTY) as daemon, daemon.connect() as client:
        pid = process_of(daemon)
        assert is_ack(client.ask({"id": "x", "text": "a hang", "stream": True}))
        assert client.receive()["delta"] == "a"
        assert daemon.stop() == 0
        assert client.end_of("x")["error"] == "shutting_down"
        eventually(lambda: not is_there(pid))


def test_without_isolation_the_driver_is_in_the_daemon(folder: Path) -> None:
    with running(folder, "--no-http", "--no-isolate") as daemon:
        (model,) = daemon.status()["models"]
        assert (model["isolated"], model["pid"]) == (False, None)
        assert daemon.answer("a b") == "a b"


def test_a_real_model_that_is_killed_goes_on_where_its_clients_had_read_to(folder: Path, smollm2: Path) -> None:
    """Eight streams, and kill -9 in the middle of them."""
    asks = [
        {"id": f"{n}", "text": f"Count from {n} to a hundred.", "stream": True, "temperature": 0, "max_tokens": 32}
        for n in range(CLIENTS)
    ]
    flags = ("--slots", str(CLIENTS), "--context-size", "512", "--threads", "1", "--no-http")
    with running(folder, *flags, model=smollm2, driver="granville-llama") as daemon:
        with daemon.connect() as client:
            client.send(*asks)
            whole = Streams(client)
            whole.read(lambda: len(whole.ends) == CLIENTS)
        with daemon.connect() as client:
            client.send(*asks)
            again = Streams(client)
            again.read(lambda: len(again.deltas) == CLIENTS and any(len(text) > 20 for text in again.deltas.values()))
            os.kill(process_of(daemon), signal.SIGKILL)
            again.read(lambda: len(again.ends) == CLIENTS)
        assert daemon.status()["models"][0]["restarts"] == 1
    assert again.deltas == whole.deltas
    for id, end in again.ends.items():
        assert text_of(end) == text_of(whole.ends[id])
        assert end["usage"]["completion_tokens"] == whole.ends[id]["usage"]["completion_tokens"]
