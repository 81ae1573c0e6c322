"""What the daemon must bear from its clients: each gets the error that is due to it, and the others are served."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgpack
import pytest

from tests.e2e.harness import (
    PATIENCE_S,
    Callback,
    Client,
    Daemon,
    Map,
    eventually,
    is_ack,
    is_terminal,
    launched,
    running,
    serve_command,
    text_of,
    words,
)

FLAGS = ("--slots", "1", "--delivery-ttl", "1", "-q", "1000")
CONFIG = {"decode_s": 0.002, "context_size": 6000}
LIMIT_BYTES = 1 << 20
CLIENTS = 1000


@pytest.fixture(autouse=True)
def serves_others(daemon: Daemon) -> Iterator[None]:
    """A client of another's, connected all the while, is served after each of these tests."""
    with daemon.connect() as other:
        yield
        assert other.ask({"op": "ping"})["ok"] is True
        eventually(lambda: daemon.status()["queue"]["waiting"] == 0)
        assert is_ack(other.ask({"id": "other", "text": "served still"}))
        assert text_of(other.end_of("other")) == "served still"


def nested(levels: int) -> object:
    value: object = "the innermost"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("message", "id", "names"),
    [
        (["an", "array"], None, "map"),
        ({"text": "no id"}, None, "id"),
        ({"id": "", "text": "an empty id"}, None, "id"),
        ({"id": "i" * 129, "text": "a long id"}, None, "id"),
        ({"id": 5, "text": "a number for an id"}, None, "id"),
        ({"id": "\udcff", "text": "invalid UTF-8 in the id"}, None, "id"),
        ({"\udcff": "invalid UTF-8 in a key", "id": "a", "text": "x"}, "a", "UTF-8"),
        ({"id": "a"}, "a", "text"),
        ({"id": "a", "text": 5}, "a", "text"),
        ({"id": "a", "text": "\udcff invalid UTF-8"}, "a", "text"),
        ({"id": "a", "text": "x", "priority": "urgent"}, "a", "priority"),
        ({"id": "a", "text": "x", "max_tokens": -1}, "a", "max_tokens"),
        ({"id": "a", "text": "x", "max_tokens": 0}, "a", "max_tokens"),
        ({"id": "a", "text": "x", "temperature": float("nan")}, "a", "temperature"),
        ({"id": "a", "text": "x", "extra": nested(100)}, "a", "extra"),
        ({"id": "a", "messages": [{"role": "user"}]}, "a", "messages"),
        ({"id": "a", "text": "x", "callback": "relative.sock"}, "a", "callback"),
        ({"id": "a", "text": "x", "callback": "/" + 107 * "c"}, "a", "callback"),
        ({"op": "no-such-op"}, None, "op"),
        ({"op": "cancel"}, None, "id"),
    ],
)
def test_a_wrong_field_is_named_and_the_connection_goes_on(
    daemon: Daemon, message: object, id: str | None, names: str
) -> None:
    with daemon.connect() as client:
        client.sock.sendall(msgpack.packb(message, unicode_errors="surrogateescape"))
        reply = client.receive()
        assert (reply["id"], reply["error"], reply["code"]) == (id, "bad_request", 400)
        assert names in reply["message"]
        assert client.ask({"op": "ping"})["ok"] is True


PART = msgpack.packb({"id": "a", "text": "a message that is cut off"})[:-5]
BEGUN = b"\x82\xa2id\xa1a\xa4text"
"""A map of two: the id, and the name of the text that would follow."""
GIGABYTE = (1 << 30).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, id="another protocol"),
        pytest.param(b"\xc1", 400, id="the byte that MessagePack never uses"),
        pytest.param(PART, 400, id="a truncated message"),
        pytest.param(BEGUN + b"\xdb" + GIGABYTE, 400, id="a string of 1 GB promised"),
        pytest.param(BEGUN + b"\xdb" + GIGABYTE + b"x" * 2 * LIMIT_BYTES, 413, id="a string of 1 GB begun"),
        pytest.param(b"\xdd" + GIGABYTE, 413, id="an array of 1 G items"),
        pytest.param(b"\xdf" + GIGABYTE, 413, id="a map of 1 G items"),
        pytest.param(msgpack.packb({"id": "a", "text": "x" * LIMIT_BYTES}), 413, id="a message over the limit"),
        pytest.param(b"\x91" * 100_000, 400, id="100 000 levels of nesting"),
    ],
)
def test_lost_framing_ends_the_connection(daemon: Daemon, sent: bytes, code: int) -> None:
    """The error, then the answers to what was accepted before, then the end; and no memory is taken on a promise."""
    memory = resident_bytes(daemon)
    with daemon.connect() as client:
        assert is_ack(client.ask({"id": "before", "text": words(20)}))
        client.sock.sendall(sent)
        client.sock.shutdown(socket.SHUT_WR)
        replies = {reply["id"]: reply for reply in client.rest()}
    refused = replies.pop(None)
    assert (refused["error"], refused["code"]) == ("bad_request" if code == 400 else "too_large", code)
    assert text_of(replies.pop("before")) == words(20)
    assert replies == {}
    assert resident_bytes(daemon) - memory < 64 << 20


def test_a_message_at_the_limit_is_taken(daemon: Daemon) -> None:
    frame = len(msgpack.packb({"id": "a", "text": "x" * 70_000})) - 70_000
    text = "x" * (LIMIT_BYTES - frame)
    with daemon.connect() as client:
        assert is_ack(client.ask({"id": "a", "text": text}))
        assert text_of(client.receive()) == text


def test_a_client_that_sends_a_byte_at_a_time(daemon: Daemon) -> None:
    with daemon.connect() as client:
        for byte in msgpack.packb({"id": "slow", "text": "slow"}):
            client.sock.sendall(bytes([byte]))
            assert daemon.answer("meanwhile") == "meanwhile"
        assert is_ack(client.receive())
        assert text_of(client.receive()) == "slow"


def test_a_client_that_never_reads(daemon: Daemon) -> None:
    """It is read no further once its unread replies pile up, and its jobs go when it does."""
    memory = resident_bytes(daemon)
    with daemon.connect() as client:
        client.sock.settimeout(1.0)
        requests = 50_000
        assert sent_until_blocked(client, ({"id": f"unread-{n}", "text": "x"} for n in range(requests))) < requests
        assert daemon.ask({"op": "ping"})["ok"] is True
        eventually(lambda: daemon.status()["queue"]["waiting"] == 0)
        assert daemon.answer("meanwhile") == "meanwhile"
    assert resident_bytes(daemon) - memory < 64 << 20
    eventually(lambda: daemon.status()["connections"]["open"] == 2)


def test_a_thousand_connections_at_once(daemon: Daemon) -> None:
    allow_open_files(CLIENTS + 200)
    with ExitStack() as stack:
        clients = [stack.enter_context(daemon.connect()) for _ in range(CLIENTS)]
        for n, client in enumerate(clients):
            client.send({"id": f"crowd-{n}", "text": f"{n}"})
        for n, client in enumerate(clients):
            assert client.receive() == {"id": f"crowd-{n}", "status": "accepted"}
        assert daemon.status()["connections"]["open"] == CLIENTS + 2
        for n, client in enumerate(clients):
            assert text_of(client.receive()) == f"{n}"
    eventually(lambda: daemon.status()["connections"]["open"] == 2)


def test_a_callback_that_does_not_exist(daemon: Daemon, folder: Path) -> None:
    failed = daemon.status()["callbacks"]["failed"]
    with Callback.at(folder / "there.sock") as there:
        for n in range(5):
            assert is_ack(daemon.ask({"id": f"n-{n}", "text": "x", "callback": str(folder / "nowhere.sock")}))
        assert is_ack(daemon.ask({"id": "there", "text": "x", "callback": str(folder / "there.sock")}))
        (result,) = there.messages()
        assert text_of(result) == "x"
        assert daemon.ask({"op": "status", "id": "n-0"})["state"] == "delivering"
    eventually(lambda: daemon.status()["callbacks"]["failed"] == failed + 5)
    assert daemon.ask({"op": "status", "id": "n-0"})["error"] == "unknown_job"


def test_a_callback_that_never_reads(daemon: Daemon, folder: Path) -> None:
    """Its answers are larger than what a socket holds for its reader, so the sender has to wait."""
    failed = daemon.status()["callbacks"]["failed"]
    large = "x" * (LIMIT_BYTES - 1000)
    with Callback.at(folder / "there.sock") as there:
        with Callback.at(folder / "deaf.sock"):
            for n in range(3):
                assert is_ack(daemon.ask({"id": f"d-{n}", "text": large, "callback": str(folder / "deaf.sock")}))
            eventually(lambda: daemon.status()["callbacks"]["senders"] == 1)
            for n in range(10):
                request = {"id": f"there-{n}", "text": large, "callback": str(folder / "there.sock")}
                assert is_ack(daemon.ask(request))
                (result,) = there.messages()
                assert text_of(result) == large
            assert [daemon.ask({"op": "status", "id": f"d-{n}"})["state"] for n in range(3)] == ["delivering"] * 3
            assert daemon.status()["callbacks"]["failed"] == failed
        eventually(lambda: daemon.status()["callbacks"]["failed"] == failed + 3)


def test_a_prompt_longer_than_the_context(daemon: Daemon, folder: Path) -> None:
    with Callback.at(folder / "c.sock") as callback:
        assert is_ack(daemon.ask({"id": "long", "text": words(6001), "callback": str(folder / "c.sock")}))
        (reply,) = callback.messages()
    assert (reply["id"], reply["error"], reply["code"]) == ("long", "prompt_too_long", 413)
    assert "6001" in reply["message"]
    assert "6000" in reply["message"]


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"model_id": "no-such-model"}, "unknown_model", 404),
        ({"model_type": "tts"}, "no_model", 503),
        ({"grammar": 'root ::= "yes"'}, "unsupported", 422),
        ({"tools": [{"name": "f"}]}, "unsupported", 422),
    ],
)
def test_what_no_model_here_can_do(daemon: Daemon, fields: Map, error: str, code: int) -> None:
    with daemon.connect() as client:
        refused = client.ask({"id": "r", "text": "x"} | fields)
        assert (refused["id"], refused["error"], refused["code"]) == ("r", error, code)
        assert is_ack(client.ask({"id": "r", "text": "x"}))


def test_the_queue_bound_is_exact(folder: Path) -> None:
    with (
        running(folder, "--slots", "1", "-q", "3", "--no-http", config={"decode_s": 0.01}) as daemon,
        daemon.connect() as client,
    ):
        assert is_ack(client.ask({"id": "runs", "text": words(3000), "max_tokens": 3000}))
        eventually(lambda: daemon.counts()["running"] == 1)
        for n in range(3):
            assert is_ack(client.ask({"id": f"w-{n}", "text": f"waits {n}"}))
        before = daemon.status()
        assert before["queue"]["waiting"] == 3

        for id, priority in (("more", "normal"), ("urgent", "critical")):
            refused = client.ask({"id": id, "text": "one too many", "priority": priority})
            assert (refused["id"], refused["error"], refused["code"]) == (id, "queue_full", 429)
            assert refused["retry_after_ms"] > 0
            assert daemon.ask({"op": "status", "id": id})["error"] == "unknown_job"
        after = daemon.status()
        assert after["queue"] | {"oldest_wait_ms": 0} == before["queue"] | {"oldest_wait_ms": 0}
        assert after["jobs"] == before["jobs"] | {"rejected": before["jobs"]["rejected"] + 2}

        # A place that is free again is taken, and all that was accepted is answered.
        daemon.ask({"op": "cancel", "id": "w-1"})
        assert client.receive()["error"] == "cancelled"
        assert is_ack(client.ask({"id": "more", "text": "there is room"}))
        daemon.ask({"op": "cancel", "id": "runs"})
        ended = client.terminals(4)
        assert ended.pop("runs")["error"] == "cancelled"
        assert {id: text_of(result) for id, result in ended.items()} == {
            "w-0": "waits 0",
            "w-2": "waits 2",
            "more": "there is room",
        }


def test_a_critical_request_behind_a_hundred_low_ones_is_next(daemon: Daemon) -> None:
    with daemon.connect() as client:
        runs = {"id": "runs", "text": words(5000), "max_tokens": 5000, "priority": "critical"}  # nobody takes its slot
        assert is_ack(client.ask(runs))
        eventually(lambda: daemon.counts()["running"] == 1)
        for n in range(100):
            assert is_ack(client.ask({"id": f"low-{n}", "text": f"low {n}", "priority": "low"}))
        with daemon.connect() as urgent:
            assert is_ack(urgent.ask({"id": "urgent", "text": "urgent", "priority": "Critical"}))
        assert is_ack(client.ask({"id": "critical", "text": "critical", "priority": "CRITICAL"}))
        assert daemon.ask({"op": "status", "id": "critical"})["position"] == 0
        by_class = daemon.status()["queue"]["by_class"]
        assert by_class == {"critical": 1, "high": 0, "normal": 0, "low": 100}

        daemon.ask({"op": "cancel", "id": "runs"})
        assert client.receive()["error"] == "cancelled"
        first, *others = [client.receive() for _ in range(101)]
    assert first["id"] == "critical"
    assert first["priority"] == "critical"
    assert [result["id"] for result in others] == [f"low-{n}" for n in range(100)]


def test_connections_over_the_limit_are_turned_away(folder: Path) -> None:
    with running(folder, "--max-connections", "3", "--no-http") as daemon, ExitStack() as stack:
        clients = [stack.enter_context(daemon.connect()) for _ in range(3)]
        for client in clients:
            assert client.ask({"op": "ping"})["ok"] is True
        with daemon.connect() as fourth:
            (refused,) = fourth.rest()
        assert (refused["id"], refused["error"], refused["code"]) == (None, "queue_full", 429)
        clients[0].sock.close()
        eventually(lambda: is_served(daemon))


def is_served(daemon: Daemon) -> bool:
    try:
        return "ok" in daemon.ask({"op": "ping"})
    except (BrokenPipeError, ConnectionResetError):  # turned away before it had sent
        return False


def test_what_a_driver_fails_on_fails_alone(folder: Path) -> None:
    config = {"decode_s": 0.005, "fault": "fail_job", "fault_word": "poison"}
    with running(folder, "--slots", "2", "--no-http", config=config) as daemon, daemon.connect() as client:
        client.send({"id": "well", "text": words(20)}, {"id": "ill", "text": "poison"})
        ended = client.terminals(2)
    assert (ended["ill"]["error"], ended["ill"]["code"]) == ("driver_failed", 502)
    assert text_of(ended["well"]) == words(20)


def test_a_driver_that_raises_is_loaded_again(folder: Path) -> None:
    config = {"decode_s": 0.005, "fault": "raise", "fault_word": "poison"}
    with running(folder, "--slots", "2", config=config) as daemon, daemon.connect() as client:
        assert is_ack(client.ask({"id": "ill", "text": "poison"}))
        ended = client.receive()
        assert (ended["id"], ended["error"], ended["code"]) == ("ill", "driver_failed", 502)
        # It waits while the model is away.
        assert is_ack(client.ask({"id": "later", "text": "back again"}))
        assert text_of(client.receive()) == "back again"
        (model,) = daemon.status()["models"]
        assert (model["state"], model["restarts"]) == ("ready", 2), "it runs once more, and then it is to blame"
        assert daemon.get("/health")[0] == 200


def test_a_client_that_goes_away_in_the_middle_of_a_stream(daemon: Daemon) -> None:
    cancelled = daemon.counts()["cancelled"]
    with daemon.connect() as client:
        client.ask({"id": "s", "text": words(5000), "max_tokens": 5000, "stream": True})
        assert "delta" in client.receive()
        began = time.monotonic()
    eventually(lambda: daemon.counts()["cancelled"] == cancelled + 1)
    eventually(lambda: not daemon.ask({"op": "models"})["models"][0]["busy"])
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("to", ["connection", "callback"])
def test_a_stream_that_nobody_reads(folder: Path, to: str) -> None:
    """Its deltas are held and merged up to a bound; then the job ends, and no other has waited for it."""
    flags = ("--slots", "2", "--max-request-bytes", str(16 << 20), "--no-http")
    with ExitStack() as stack:
        daemon = stack.enter_context(running(folder, *flags, config={"decode_s": 0.001}))
        deaf = stack.enter_context(Callback.at(folder / "deaf.sock"))
        client = stack.enter_context(daemon.connect())
        request: Map = {"id": "unread", "text": " ".join(["x" * 20_000] * 700), "stream": True, "max_tokens": 700}
        client.send(request | ({"callback": str(folder / "deaf.sock")} if to == "callback" else {}))
        assert is_ack(client.receive())
        assert daemon.answer("meanwhile") == "meanwhile"
        eventually(lambda: daemon.counts()["cancelled"] == 1)
        *deltas, ended = deaf.messages() if to == "callback" else [*until_terminal(client)]
        assert (ended["id"], ended["error"], ended["code"]) == ("unread", "cancelled", 499)
        streamed = "".join(delta["delta"] for delta in deltas)
        assert request["text"].startswith(streamed)
        assert 4 << 20 <= len(streamed) < 8 << 20


def test_a_daemon_short_of_open_files_loses_no_result(folder: Path) -> None:
    """While clients hold all of them, callbacks cannot be connected to; they are once there is room again."""
    allow_open_files(200)
    command = [
        "sh",
        "-c",
        'ulimit -n 40; exec "$0" "$@"',
        *serve_command(folder, "--no-http", config={"decode_s": 0.3}),
    ]
    with (folder / "log").open("w") as log, launched(command, folder, log) as process, ExitStack() as stack:
        assert process.stdout is not None
        daemon = Daemon(process, folder / "g.sock", folder / "log", process.stdout.readline())
        callback = stack.enter_context(Callback.at(folder / "c.sock"))
        first = stack.enter_context(daemon.connect())
        assert is_ack(first.ask({"id": "kept", "text": "kept for you", "callback": str(folder / "c.sock")}))
        with ExitStack() as crowd:
            for _ in range(60):
                crowd.enter_context(daemon.connect())
            eventually(lambda: first.ask({"op": "status", "id": "kept"})["state"] == "delivering")
            callback.sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                callback.sock.accept()
        callback.sock.settimeout(PATIENCE_S)
        (result,) = callback.messages()
        assert text_of(result) == "kept for you"
        assert daemon.answer("room again") == "room again"
        assert daemon.stop() == 0


def sent_until_blocked(client: Client, messages: Iterable[Map]) -> int:
    """How many messages are sent before the daemon takes nothing for the client's timeout."""
    sent = 0
    for message in messages:
        try:
            client.send(message)
        except TimeoutError:
            break
        sent += 1
    return sent


def until_terminal(client: Client) -> Iterator[Map]:
    while True:
        message = client.receive()
        yield message
        if is_terminal(message):
            return


def resident_bytes(daemon: Daemon) -> int:
    pages = int(Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def allow_open_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
