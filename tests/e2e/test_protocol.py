"""The wire protocol as a program of another language would speak it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from granville import __version__
from tests.e2e.harness import Callback, Client, Daemon, eventually, is_ack, is_terminal, running, text_of, words

FLAGS = ("--tcp", "127.0.0.1:0", "--slots", "2")
LONG = words(2000)
"""Far longer than any test: a job that ends by being cancelled."""

FOREIGN_CLIENT = """
import json, msgpack, socket, sys
daemon_path, callback_path = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX); listener.bind(callback_path); listener.listen()
sock = socket.socket(socket.AF_UNIX); sock.connect(daemon_path)
sock.sendall(msgpack.packb(
    {"id": "req-1", "text": "Say hello.", "callback": callback_path, "ranked": False, "priority": "HIGH"}))
ack = msgpack.unpackb(sock.recv(4096))
result = msgpack.unpackb(listener.accept()[0].recv(65536))
print(json.dumps([ack, result]))
"""


def foreign_client(daemon: Daemon, folder: Path) -> tuple[dict[str, object], dict[str, object]]:
    """The ACK and the result that a script of ten lines gets, with one `recv` for each."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FOREIGN_CLIENT, str(daemon.socket), str(folder / "callback.sock")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    ack, result = json.loads(done.stdout)
    return ack, result


def test_the_exact_request_gets_the_exact_replies(daemon: Daemon, folder: Path) -> None:
    ack, result = foreign_client(daemon, folder)
    assert ack == {"id": "req-1", "status": "accepted"}
    assert result == {
        "id": "req-1",
        "model_id": daemon.ready["model"],
        "tool_id": "__chat__",
        "tool_input_json": '["Say hello."]',
        "priority": "high",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 2, "cached_tokens": 0, "completion_tokens": 2},
    }


def test_the_exact_request_on_the_real_model(folder: Path, smollm2: Path) -> None:
    flags = ("--slots", "1", "--context-size", "512", "--threads", "1")
    with running(folder, *flags, model=smollm2, driver="granville-llama") as daemon:
        ack, result = foreign_client(daemon, folder)
    assert ack == {"id": "req-1", "status": "accepted"}
    assert set(result) == {
        "id", "model_id", "tool_id", "tool_input_json", "priority", "finish_reason", "usage"
    }  # fmt: skip
    assert result["model_id"] == daemon.ready["model"]
    assert daemon.ready["model"].startswith("llama-")
    assert result["tool_id"] == "__chat__"
    assert text_of(result).strip()
    assert result["finish_reason"] in ("stop", "length")


def test_a_null_or_missing_callback_is_answered_on_the_connection(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.send({"id": "null", "text": "one two", "callback": None, "priority": None})
        client.send({"id": "missing", "text": "three"})
        ended = client.terminals(2)
    assert text_of(ended["null"]) == "one two"
    assert ended["null"]["priority"] == "normal"
    assert text_of(ended["missing"]) == "three"


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"priority": "CRITICAL"}, "critical"),
        ({"priority": "High", "ranked": False}, "high"),
        ({"priority": "low", "ranked": True}, "low"),
        ({"priority": None, "ranked": True}, "normal"),
    ],
)
def test_the_class_of_a_result_is_the_requests_own(daemon: Daemon, asked: dict[str, object], given: str) -> None:
    """A daemon without a ranker takes a request to be ranked as a normal one."""
    with daemon.connect() as client:
        assert is_ack(client.ask({"id": "class", "text": "x"} | asked))
        assert client.receive()["priority"] == given


def test_many_requests_on_a_connection(daemon: Daemon) -> None:
    """Also: a job's ACK comes before all else of it, and replies are told apart by id alone."""
    with daemon.connect() as client:
        client.send(*({"id": f"many-{n}", "text": f"answer {n}"} for n in range(200)))
        accepted: set[str] = set()
        answers: dict[str, str] = {}
        while len(answers) < 200:
            message = client.receive()
            if is_ack(message):
                accepted.add(message["id"])
            else:
                assert message["id"] in accepted
                answers[message["id"]] = text_of(message)
    assert answers == {f"many-{n}": f"answer {n}" for n in range(200)}


def test_one_connection_a_request(daemon: Daemon, folder: Path) -> None:
    """As older clients do: connect, send, read the ACK, close; the answer comes to the callback."""
    with Callback.at(folder / "c.sock") as callback:
        for n in range(20):
            request = {"id": f"old-{n}", "text": f"answer {n}", "callback": str(folder / "c.sock")}
            assert is_ack(daemon.ask(request))
        answers = [callback.messages() for _ in range(20)]
    assert {message["id"]: text_of(message) for (message,) in answers} == {f"old-{n}": f"answer {n}" for n in range(20)}


def test_max_tokens_ends_an_answer(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.ask({"id": "short", "text": words(10), "max_tokens": 3})
        result = client.receive()
    assert result["finish_reason"] == "length"
    assert result["usage"] == {"prompt_tokens": 10, "cached_tokens": 0, "completion_tokens": 3}
    assert text_of(result) == words(3)


def test_deltas_join_to_the_answer(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.send({"id": "s", "text": "a few words to stream", "stream": True})
        ack, *deltas, result = [client.receive() for _ in range(7)]
    assert is_ack(ack)
    assert all(set(delta) == {"id", "delta"} for delta in deltas)
    assert len(deltas) == 5
    assert "".join(delta["delta"] for delta in deltas) == text_of(result) == "a few words to stream"


def test_deltas_go_to_the_callback_with_the_result(daemon: Daemon, folder: Path) -> None:
    with Callback.at(folder / "c.sock") as callback, daemon.connect() as client:
        request = {"id": "s", "text": "a few words", "stream": True, "callback": str(folder / "c.sock")}
        assert is_ack(client.ask(request))
        *deltas, result = callback.messages()
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == []
    assert len(deltas) >= 1
    assert "".join(delta["delta"] for delta in deltas) == text_of(result) == "a few words"


def test_messages_are_a_conversation(daemon: Daemon) -> None:
    with daemon.connect() as client:
        turns = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]
        client.ask({"id": "m", "messages": [*turns, {"role": "user", "content": "four five"}]})
        result = client.receive()
    assert text_of(result) == "four five"
    assert result["usage"]["prompt_tokens"] == 5


def test_the_second_turn_of_a_session_sees_the_first(daemon: Daemon) -> None:
    def prompt_tokens(text: str, **fields: object) -> int:
        with daemon.connect() as client:
            client.ask({"id": "turn", "text": text, "session_id": "talk", **fields})
            tokens = client.receive()["usage"]["prompt_tokens"]
            assert isinstance(tokens, int)
            return tokens

    assert prompt_tokens("one two three") == 3
    assert prompt_tokens("four") == 3 + 3 + 1
    assert prompt_tokens("five", reset_cache=True) == 1
    assert prompt_tokens("six") == 1 + 1 + 1


def test_the_models(daemon: Daemon) -> None:
    (model,) = daemon.ask({"op": "models"})["models"]
    assert model["id"] == daemon.ready["model"]
    assert model["type"] == "inference"
    assert model["busy"] is False
    assert Path(model["path"]).name == "model.bin"


def test_ping_and_rid(daemon: Daemon) -> None:
    assert daemon.ask({"op": "ping"}) == {"ok": True, "version": __version__}
    assert daemon.ask({"op": "ping", "rid": "r-1"}) == {"ok": True, "version": __version__, "rid": "r-1"}
    assert daemon.ask({"op": "models", "rid": 7})["rid"] == 7
    refused = daemon.ask({"op": "cancel", "id": "never-came", "rid": "r-2"})
    assert (refused["error"], refused["code"], refused["rid"]) == ("unknown_job", 404, "r-2")
    assert daemon.ask({"op": "no-such-op", "rid": "r-3"})["code"] == 400


def test_status_of_jobs_and_cancel(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.send(*({"id": id, "text": LONG, "max_tokens": 10_000} for id in ("run-1", "run-2", "wait-1", "wait-2")))
        for _ in range(4):
            assert is_ack(client.receive())
        eventually(lambda: daemon.status()["jobs"]["running"] == 2)
        assert daemon.ask({"op": "status", "id": "run-1"})["state"] == "running"
        waiting = daemon.ask({"op": "status", "id": "wait-2"})
        assert waiting["id"] == "wait-2"
        assert waiting["state"] == "waiting"
        assert waiting["position"] == 1 + daemon.ask({"op": "status", "id": "wait-1"})["position"]
        assert daemon.status()["queue"]["waiting"] == 2

        for id in ("wait-2", "wait-1", "run-2", "run-1"):
            assert daemon.ask({"op": "cancel", "id": id}) == {"id": id, "state": "cancelled"}
            ended = client.receive()
            assert (ended["id"], ended["error"], ended["code"]) == (id, "cancelled", 499)
    eventually(lambda: daemon.status()["jobs"]["running"] == 0)
    assert daemon.status()["queue"]["waiting"] == 0


def test_the_same_request_again_runs_once(daemon: Daemon) -> None:
    accepted = daemon.counts()["accepted"]
    request = {"id": "twice", "text": words(60)}
    with daemon.connect() as client:
        assert is_ack(client.ask(request))
        assert is_ack(client.ask(request | {"timeout_ms": 60_000}))
        assert text_of(client.receive()) == words(60)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == []
    assert daemon.counts()["accepted"] == accepted + 1


def test_the_same_streamed_request_again_repeats_no_delta(daemon: Daemon) -> None:
    request = {"id": "twice", "text": words(60), "stream": True}
    with daemon.connect() as client:
        assert is_ack(client.ask(request))
        first = client.receive()
        client.send(request)
        messages = [first]
        while not is_terminal(messages[-1]):
            messages.append(client.receive())
        assert sum(map(is_ack, messages)) == 1
        assert "".join(message.get("delta", "") for message in messages) == words(60)


def test_the_same_streamed_request_from_elsewhere_begins_afresh_there(daemon: Daemon) -> None:
    """All of the answer: what was streamed to the first place comes again."""
    request = {"id": "moved", "text": words(60), "stream": True}
    with daemon.connect() as first, daemon.connect() as second:
        assert is_ack(first.ask(request))
        assert "delta" in first.receive()
        assert is_ack(second.ask(request))
        deltas = []
        while not is_terminal(message := second.receive()):
            deltas.append(message["delta"])
        assert "".join(deltas) == text_of(message) == words(60)


def test_the_same_request_from_elsewhere_takes_the_answer_there(daemon: Daemon) -> None:
    request = {"id": "moved", "text": words(100)}
    with daemon.connect() as first, daemon.connect() as second:
        assert is_ack(first.ask(request))
        assert is_ack(second.ask(request))
        assert text_of(second.receive()) == words(100)
        first.sock.shutdown(socket.SHUT_WR)
        assert first.rest() == []


def test_another_request_under_a_live_id_is_a_conflict(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.ask({"id": "taken", "text": words(60)})
        refused = client.ask({"id": "taken", "text": "something else"})
        assert (refused["id"], refused["error"], refused["code"]) == ("taken", "conflict", 409)
        assert text_of(client.receive()) == words(60)


def test_an_id_is_free_again_after_its_answer(daemon: Daemon) -> None:
    with daemon.connect() as client:
        for text in ("one", "another"):
            client.ask({"id": "again", "text": text})
            assert text_of(client.receive()) == text


def test_a_half_closed_client_still_gets_its_answer(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.send({"id": "half", "text": words(50)})
        client.sock.shutdown(socket.SHUT_WR)
        ack, result = client.rest()
    assert is_ack(ack)
    assert text_of(result) == words(50)


@pytest.mark.parametrize("how", ["closed", "reset", "half-closed first", "tcp"])
def test_the_job_of_a_client_that_went_away_is_cancelled(daemon: Daemon, how: str) -> None:
    before = daemon.counts()["cancelled"]
    with daemon.connect_tcp() if how == "tcp" else daemon.connect() as client:
        client.send({"id": "gone", "text": LONG, "max_tokens": 10_000})
        if how != "reset":  # a peer that closes with something unread resets the connection
            assert is_ack(client.receive())
        if how == "half-closed first":
            client.sock.shutdown(socket.SHUT_WR)
        eventually(lambda: daemon.counts()["running"] == 1)
        assert daemon.counts()["cancelled"] == before
    eventually(lambda: daemon.counts()["cancelled"] == before + 1)
    eventually(lambda: not daemon.ask({"op": "models"})["models"][0]["busy"])
    assert daemon.ask({"op": "status", "id": "gone"})["error"] == "unknown_job"


def test_a_job_past_its_deadline(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.ask({"id": "late", "text": LONG, "max_tokens": 10_000, "timeout_ms": 200})
        ended = client.receive()
    assert (ended["id"], ended["error"], ended["code"]) == ("late", "deadline_exceeded", 408)
    eventually(lambda: daemon.counts()["running"] == 0)


def test_tcp(daemon: Daemon) -> None:
    with daemon.connect_tcp() as client:
        assert client.ask({"op": "ping"})["ok"] is True
        assert is_ack(client.ask({"id": "tcp", "text": "over tcp"}))
        assert text_of(client.receive()) == "over tcp"


def test_any_split_of_the_stream(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.send({"op": "ping", "rid": 1}, {"op": "ping", "rid": 2})
        assert [client.receive()["rid"], client.receive()["rid"]] == [1, 2]
        for byte in msgpack.packb({"op": "ping", "rid": 3}):
            client.sock.sendall(bytes([byte]))
        assert client.receive()["rid"] == 3


def test_unknown_fields_are_counted_and_ignored(daemon: Daemon) -> None:
    before = daemon.status()["unknown_fields"]
    assert daemon.answer("still", colour="blue", shape={"sides": 3}) == "still"
    assert daemon.status()["unknown_fields"] == before + 2


def test_drain_finishes_all_that_was_accepted(folder: Path) -> None:
    with running(folder, "--slots", "1", config={"decode_s": 0.01}) as daemon, daemon.connect() as client:
        client.send({"id": "runs", "text": words(50)}, {"id": "waits", "text": words(5)})
        assert is_ack(client.receive())
        assert is_ack(client.receive())
        with daemon.connect() as other:
            assert other.ask({"op": "drain"}) == {"state": "draining", "jobs": 2}
            refused = other.ask({"id": "new", "text": "too late"})
            assert (refused["id"], refused["error"], refused["code"]) == ("new", "shutting_down", 503)
        assert {id: text_of(result) for id, result in client.terminals(2).items()} == {
            "runs": words(50),
            "waits": words(5),
        }
        assert daemon.wait() == 0


def connections_open(daemon: Daemon) -> int:
    count: int = daemon.status()["connections"]["open"]
    return count


def test_closed_connections_are_let_go(daemon: Daemon) -> None:
    clients: list[Client] = [daemon.connect() for _ in range(20)]
    eventually(lambda: connections_open(daemon) >= 21)
    for client in clients:
        client.sock.close()
    eventually(lambda: connections_open(daemon) == 1)
