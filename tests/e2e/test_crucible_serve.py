"""`crucible serve` on its socket and over HTTP: what it takes, what it tells, and what it survives."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import threading
from pathlib import Path

import msgpack
import pytest

from granville import __version__
from tests.e2e.crucible import HELLO, Crucible, crucible, crucible_serving, server_events, slow
from tests.e2e.harness import Callback, Client, Daemon, Map, eventually, running

CONFIG = {"decode_s": 0.01}


def run_message(workflow: str = HELLO, **more: object) -> Map:
    inputs = {"inputs": {"who": "Ann"}} if workflow == HELLO else {}
    return {"op": "run", "workflow": workflow, **inputs, **more}


def wait_until_finished(serving: Crucible, id: str) -> None:
    eventually(lambda: serving.run_of(id)["state"] == "finished")


def until_end(client: Client) -> list[Map]:
    """Messages up to the first terminal one."""
    messages = [client.receive()]
    while "outputs" not in messages[-1] and "error" not in messages[-1]:
        messages.append(client.receive())
    return messages


def test_a_run_on_the_socket(serving: Crucible) -> None:
    with serving.connect() as client:
        client.send(run_message(rid=7))
        ack = client.receive()
        assert ack == {"id": ack["id"], "status": "accepted", "rid": 7}
        assert client.receive() == {
            "id": ack["id"], "workflow": "hello", "state": "finished",
            "outputs": {"greeting": "greet Ann", "answer": "answer to greet Ann"},
        }  # fmt: skip
        listed = client.ask({"op": "runs", "limit": 1})["runs"]
        assert [(run["id"], run["state"], run["steps_done"]) for run in listed] == [(ack["id"], "finished", 2)]
        shown = client.ask({"op": "show", "id": ack["id"], "rid": "s"})
        assert shown["rid"] == "s"
        assert [(step["key"], step["output"]) for step in shown["steps"]] == [
            ("greet", "greet Ann"), ("answer", "answer to greet Ann")
        ]  # fmt: skip


def test_a_run_that_is_streamed_tells_its_steps_and_texts(serving: Crucible) -> None:
    with serving.connect() as client:
        client.send(run_message(stream=True))
        ack, *events, end = until_end(client)
    assert all(event["id"] == ack["id"] for event in events)
    steps = [(event["step"], event["state"]) for event in events if event["event"] == "step"]
    assert steps == [("greet", "running"), ("greet", "finished"), ("answer", "running"), ("answer", "finished")]
    deltas = "".join(event["delta"] for event in events if event["event"] == "delta" and event["step"] == "answer")
    assert deltas == end["outputs"]["answer"]
    assert [event["state"] for event in events if event["event"] == "run"] == ["running"]


def test_a_workflow_is_a_map_or_a_file(serving: Crucible, tmp_path: Path) -> None:
    (tmp_path / "hello.yaml").write_text(HELLO)
    as_map = {
        "name": "as-map", "steps": [{"id": "one", "model_type": "inference", "input": "from a map"}],
    }  # fmt: skip
    with serving.connect() as client:
        client.send({"op": "run", "workflow": as_map})
        assert until_end(client)[-1]["outputs"] == {"one": "from a map"}
        client.send({"op": "run", "path": str(tmp_path / "hello.yaml"), "inputs": {"who": "Bo"}})
        assert until_end(client)[-1]["outputs"]["greeting"] == "greet Bo"
        assert "make it absolute" in client.ask({"op": "run", "path": "hello.yaml"})["message"]
    with serving.connect_tcp() as client:
        refused = client.ask({"op": "run", "path": str(tmp_path / "hello.yaml")})
        assert (refused["error"], refused["code"]) == ("unsupported", 422)
        assert client.ask({"op": "ping"}) == {"ok": True, "version": __version__, "crucible": True}


def test_the_same_run_again_is_the_same_run(serving: Crucible, daemon: Daemon) -> None:
    with serving.connect() as client:
        client.send(run_message(id="twice"))
        first = until_end(client)[-1]
        asked = daemon.counts()["accepted"]
        client.send(run_message(id="twice"))
        assert until_end(client)[-1] == first
        assert daemon.counts()["accepted"] == asked
        refused = client.ask(run_message(slow(1), id="twice"))
        assert (refused["error"], refused["code"], refused["id"]) == ("conflict", 409, "twice")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"op": "sing"}, "op: expected one of run, resume, events, runs"),
        ({"text": "hi"}, "op: expected one of run"),
        ({"op": "run"}, "either `workflow`"),
        ({"op": "run", "workflow": "a: 1", "path": "/x"}, "either `workflow`"),
        ({"op": "run", "workflow": 3}, "workflow"),
        ({"op": "run", "workflow": HELLO}, "who: missing"),
        ({"op": "run", "workflow": HELLO, "inputs": {"who": "x", "what": 1}}, "no such input"),
        ({"op": "run", "workflow": HELLO, "inputs": {"who": 3}}, "expected a text"),
        ({"op": "run", "workflow": HELLO.replace("model_type", "model_kind")}, "model_kind"),
        ({"op": "run", "path": "/nowhere/x.yaml"}, "/nowhere/x.yaml"),
        ({"op": "run", "workflow": HELLO, "stream": "yes"}, "stream: expected `bool`"),
        ({"op": "run", "workflow": HELLO, "inputs": {"who": "x"}, "callback": "relative"}, "callback"),
        ({"op": "run", "workflow": HELLO, "inputs": {"who": "x"}, "id": "no/slashes"}, "no/slashes"),
        ({"op": "show"}, "id: missing"),
        ({"op": "show", "id": "r-nope"}, "no such run"),
        ({"op": "events", "id": "r-nope"}, "no such run"),
        ({"op": "cancel", "id": "r-nope"}, "no such run"),
        ({"op": "resume", "id": "r-nope"}, "no such run"),
        ({"op": "runs", "state": "asleep"}, "one of running, finished"),
        ({"op": "runs", "limit": 0}, "limit"),
        ([1, 2], "must be a map"),
    ],
)
def test_what_is_wrong_is_named_and_the_connection_goes_on(serving: Crucible, message: object, said: str) -> None:
    with serving.connect() as client:
        refused = client.ask(message)
        assert refused["code"] in (400, 404, 422)
        assert said in refused["message"]
        assert client.ask({"op": "ping"})["ok"] is True


@pytest.mark.parametrize("garbage", [b"\xc1", b"GET / HTTP/1.1\r\n\r\n", msgpack.packb("text")])
def test_what_is_no_messagepack_ends_the_connection_alone(serving: Crucible, garbage: bytes) -> None:
    with serving.connect() as client, serving.connect() as other:
        client.sock.sendall(garbage)
        client.sock.shutdown(socket.SHUT_WR)
        assert [message["error"] for message in client.rest()] == ["bad_request"]
        assert other.ask({"op": "ping"})["ok"] is True


def test_two_clients_follow_one_run_and_another_cancels_it(serving: Crucible) -> None:
    with serving.connect() as one, serving.connect() as two:
        one.send(run_message(slow(50), stream=True))
        id = one.receive()["id"]
        two.send({"op": "events", "id": id})
        assert two.receive() == {"id": id, "status": "accepted"}
        assert two.receive()["event"] == "run"
        with serving.connect() as third:
            assert third.ask({"op": "cancel", "id": id}) == {"id": id, "state": "cancelled"}
        for client in (one, two):
            end = next(message for message in until_end(client)[::-1] if message.get("id") == id)
            assert (end["error"], end["code"], end["state"]) == ("cancelled", 499, "cancelled")


def test_a_client_that_goes_away_takes_its_run_with_it_unless_it_is_detached(serving: Crucible) -> None:
    with serving.connect() as client:
        gone = client.ask(run_message(slow(60)))["id"]
        stays = client.ask(run_message(slow(3), detached=True))["id"]
    eventually(lambda: serving.run_of(gone)["state"] == "cancelled")
    eventually(lambda: serving.run_of(stays)["state"] == "finished")


def test_a_callback_gets_the_events_and_the_end(serving: Crucible, folder: Path) -> None:
    with Callback.at(folder / "me.sock") as callback, serving.connect() as client:
        ack = client.ask(run_message(callback=str(folder / "me.sock"), stream=True))
        client.sock.close()
        messages = callback.messages()
    assert {message["id"] for message in messages} == {ack["id"]}
    assert messages[-1]["outputs"]["answer"] == "answer to greet Ann"
    assert [message["state"] for message in messages if message.get("event") == "step"] == ["running", "finished"] * 2


def test_sound_goes_in_and_out_as_bytes(serving: Crucible) -> None:
    """An input that is sound reaches the outputs as it came, by every way in."""
    echo = "name: echo\ninputs: {sound: {type: audio}}\nsteps:\n"
    echo += "  - {id: say, model_type: inference, input: one word}\noutputs: {back: sound, said: say}\n"
    wav = b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(range(256))
    with serving.connect() as client:
        client.send({"op": "run", "workflow": echo, "inputs": {"sound": wav}})
        assert until_end(client)[-1]["outputs"] == {"back": wav, "said": "one word"}

    body = {"workflow": echo, "inputs": {"sound": base64.b64encode(wav).decode()}}
    form = (
        b'--x\r\nContent-Disposition: form-data; name="run"\r\n\r\n' + json.dumps({"workflow": echo}).encode()
        + b'\r\n--x\r\nContent-Disposition: form-data; name="sound"; filename="a.wav"\r\n'
        + b"Content-Type: audio/wav\r\n\r\n"
        + wav + b"\r\n--x--\r\n"
    )  # fmt: skip
    for posted in (
        serving.post("/runs", body),
        serving.post("/runs", form, **{"content-type": "multipart/form-data; boundary=x"}),
    ):
        assert posted[0] == 202, posted
        id = str(posted[1]["id"])
        wait_until_finished(serving, id)
        assert serving.run_of(id)["outputs"]["back"] == {"bytes": len(wav), "href": f"/runs/{id}/outputs/back"}
        with serving.stream(f"/runs/{id}/outputs/back") as response:
            assert response.headers["content-type"] == "audio/wav"
            assert response.read() == wav
    refused = serving.post("/runs", {"workflow": echo, "inputs": {"sound": "not base64!"}})
    assert "not base64" in refused[1]["message"]


def test_a_run_over_http_from_its_post_to_its_outputs(serving: Crucible) -> None:
    status, reply, headers = serving.post("/runs", {"workflow": HELLO, "inputs": {"who": "Ann"}, "id": "by-http"})
    assert (status, reply) == (202, {"id": "by-http", "status": "accepted", "href": "/runs/by-http"})
    assert headers["location"] == "/runs/by-http"
    with serving.stream("/runs/by-http/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = list(server_events(response))
    assert [(data["step"], data["state"]) for _, name, data in events if name == "step"] == [
        ("greet", "running"), ("greet", "finished"), ("answer", "running"), ("answer", "finished")
    ]  # fmt: skip
    assert events[-1][1] == "run"
    assert events[-1][2]["outputs"] == {"greeting": "greet Ann", "answer": "answer to greet Ann"}
    assert serving.get("/runs/by-http/outputs/answer") == (200, "answer to greet Ann")
    assert serving.get("/runs/by-http/outputs/none")[0] == 404
    assert serving.get("/runs/none")[0] == serving.get("/runs/none/events")[0] == 404
    _, listed = serving.get("/runs?limit=1&state=finished")
    assert isinstance(listed, dict)
    assert [run["id"] for run in listed["runs"]] == ["by-http"]
    assert serving.get("/runs?state=asleep")[0] == serving.get("/runs?limit=-1")[0] == 400
    metrics = serving.get("/metrics")[1]
    assert "crucible_runs_going_on 0\n" in str(metrics)


def test_a_stream_goes_on_behind_the_last_event_that_was_read(serving: Crucible) -> None:
    id = serving.start(slow(8))
    with serving.stream(f"/runs/{id}/events") as response:
        read, last = [], ""
        for place, name, data in server_events(response):
            read.append((name, data.get("step"), data.get("state")))
            last = place or last
            if data.get("step") == "s1" and data.get("state") == "finished":
                break
    with serving.stream(f"/runs/{id}/events", Last_Event_ID=last) as response:
        rest = list(server_events(response))
    states = [one for one in read if one[0] == "step"] + [
        (name, data["step"], data["state"]) for _, name, data in rest if name == "step"
    ]
    assert states == [("step", f"s{number}", state) for number in range(8) for state in ("running", "finished")]
    with serving.stream(f"/runs/{id}/events", Last_Event_ID=rest[-1][0]) as response:
        assert response.status == 204  # a browser asks no more


def test_what_http_refuses(serving: Crucible) -> None:
    good = {"workflow": HELLO, "inputs": {"who": "x"}}
    assert serving.post("/runs", good, Origin="http://evil.example")[0] == 403
    assert serving.post("/runs", good, Host="evil.example")[0] == 400
    assert serving.post("/runs", good, **{"content-type": "text/plain"})[0] == 400
    assert serving.post("/runs", b"{")[0] == 400
    assert serving.post("/runs", b"[]")[0] == 400
    assert serving.post("/runs", {"inputs": {}})[0] == 400
    status, refused, _ = serving.post("/runs", {"path": "/etc/passwd"})
    assert (status, refused["error"]) == (422, "unsupported")
    status, refused, _ = serving.post("/runs", {"workflow": HELLO.replace("model_type", "modeltype")})
    assert status == 422
    assert "modeltype" in str(refused["problems"])
    assert serving.post("/runs/none/cancel")[0] == 404
    assert serving.get("/runs/..%2f..%2fetc%2fpasswd")[0] == 404
    large = b"x" * 100
    status, refused, _ = serving.post("/runs", large, **{"content-length": str(1 << 40)})
    assert (status, refused["error"]) == (413, "too_large")


def test_a_run_that_came_over_the_wire_reads_no_file(serving: Crucible, tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(b"RIFF")
    flow = f"name: spy\nsteps:\n  - {{id: hear, model_type: stt, input: '{tmp_path}/secret.wav'}}\n"
    id = serving.start(flow)
    eventually(lambda: serving.run_of(id)["state"] == "failed")
    assert "names no files" in serving.run_of(id)["error"]


def test_the_page_can_run_nothing_that_is_not_its_own(serving: Crucible) -> None:
    with serving.stream("/") as response:
        policy = response.headers["content-security-policy"]
        page = response.read().decode()
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert policy.count("sha256-") == 2
    assert "innerHTML" not in page
    with serving.stream("/changes") as response:
        assert response.readline() == b"event: changed\n"


def test_full_is_429_with_a_time_to_wait(daemon: Daemon, folder: Path) -> None:
    with crucible_serving(folder, daemon.socket, "--max-runs", "1", "--grace", "0") as serving:
        busy = serving.start(slow(200))
        with serving.connect() as client:
            refused = client.ask(run_message())
            assert (refused["error"], refused["code"]) == ("queue_full", 429)
            assert refused["retry_after_ms"] > 0
        status, refused, headers = serving.post("/runs", {"workflow": HELLO, "inputs": {"who": "x"}})
        assert (status, refused["code"]) == (429, 429)
        assert int(headers["retry-after"]) >= 1
        assert serving.post(f"/runs/{busy}/cancel")[1] == {"id": busy, "state": "cancelled"}
        serving.start(HELLO, who="x")


def test_health_is_honest(folder: Path) -> None:
    with running(folder) as granville, crucible_serving(folder, granville.socket) as serving:
        assert serving.get("/health") == (200, {"healthy": True, "status": "ok", "granville": "ok", "journal": "ok"})
        granville.stop()
        eventually(lambda: serving.get("/health")[0] == 503)
        _, health = serving.get("/health")
        assert isinstance(health, dict)
        assert "no daemon is listening" in health["granville"]
        assert health["journal"] == "ok"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_had_not_ended_goes_on_when_the_daemon_is_back(
    daemon: Daemon, folder: Path, number: signal.Signals
) -> None:
    """Whatever ended it. Steps that had finished are not asked again, and the callback gets its one end."""
    with (
        Callback.at(folder / "me.sock") as callback,
        crucible_serving(folder, daemon.socket, "--grace", "0") as serving,
        serving.connect() as client,
    ):
        id = client.ask(run_message(slow(12), callback=str(folder / "me.sock")))["id"]
        eventually(lambda: serving.run_of(id)["steps_done"] >= 3)
        serving.signal(number)
        assert serving.wait() == (0 if number == signal.SIGTERM else -number)
        asked = daemon.counts()["accepted"]
        with crucible_serving(folder, daemon.socket) as again:
            assert again.ready["taken_up"] == "1"
            (end,) = callback.messages()
            assert (end["id"], end["state"]) == (id, "finished")
            assert daemon.counts()["accepted"] - asked <= 12 - 3 + 1
            _, shown = again.get(f"/runs/{id}")
            assert isinstance(shown, dict)
            assert [step["key"] for step in shown["steps"]] == [f"s{number}" for number in range(12)]
            eventually(lambda: json.loads((folder / "crucible/runs.db-callbacks").read_text()) == {})


def test_whoever_waits_on_the_connection_is_told_that_the_run_has_stopped(daemon: Daemon, folder: Path) -> None:
    with crucible_serving(folder, daemon.socket, "--grace", "0.1") as serving, serving.connect() as client:
        id = client.ask(run_message(slow(100)))["id"]
        serving.signal(signal.SIGTERM)
        end = client.receive()
        assert (end["id"], end["error"], end["state"]) == (id, "interrupted", "interrupted")
        with pytest.raises(EOFError):
            client.receive()
        assert serving.wait() == 0


def test_one_daemon_a_journal(serving: Crucible, folder: Path) -> None:
    journal = serving.socket.parent / "crucible" / "runs.db"
    done = crucible(folder, "serve", "--no-http", "-s", str(folder / "c.sock"), "--journal", str(journal))
    assert done.returncode == 1
    assert done.stderr == f"crucible: --journal {journal}: another daemon is serving there; stop it or choose another\n"


def test_runs_of_many_clients_at_once_all_end_once(serving: Crucible) -> None:
    ends: list[list[Map]] = []

    def ask(number: int) -> None:
        with serving.connect() as client:
            client.send(run_message(slow(2, 2), id=f"many-{number}"))
            ends.append(until_end(client)[1:])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(end["id"] for (end,) in ends) == sorted(f"many-{number}" for number in range(20))
    assert all(end["state"] == "finished" for (end,) in ends)
    assert oct(os.stat(serving.socket).st_mode & 0o777) == "0o600"
