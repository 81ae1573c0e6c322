"""HTTP status over a real socket."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

import pytest

from granville import __version__
from tests.e2e.harness import Daemon, Map, eventually, is_ack, running, words

FLAGS = ("--tcp", "127.0.0.1:0", "--slots", "3")


def get_json(daemon: Daemon, path: str) -> Map:
    status, body = daemon.get(path)
    assert status == 200
    assert isinstance(body, dict)
    return body


def test_health(daemon: Daemon) -> None:
    assert get_json(daemon, "/health") == {"status": "ok", "healthy": True, "stalled": [], "not_ready": []}


def test_models(daemon: Daemon) -> None:
    body = get_json(daemon, "/models")
    assert set(body) == {"models"}
    (model,) = body["models"]
    path = str(daemon.socket.with_name("model.bin"))
    shape = {"id": daemon.ready["model"], "type": "inference", "path": path, "busy": False}
    assert model == model | shape
    assert list(model)[:4] == list(shape)
    assert model["slots"] == 3
    assert body == daemon.ask({"op": "models"})


def test_a_busy_model_says_so(daemon: Daemon) -> None:
    with daemon.connect() as client:
        assert is_ack(client.ask({"id": "runs", "text": words(2000), "max_tokens": 2000}))
        eventually(lambda: get_json(daemon, "/models")["models"][0]["busy"])
        assert get_json(daemon, "/models")["models"][0]["running"] == 1
        assert get_json(daemon, "/health")["healthy"] is True
    eventually(lambda: not get_json(daemon, "/models")["models"][0]["busy"])


def test_status(daemon: Daemon) -> None:
    before = get_json(daemon, "/status")
    assert before["version"] == __version__
    assert before["pid"] == daemon.process.pid
    assert before["state"] == "serving"
    assert before["queue"]["limit"] == 1000
    daemon.answer("one more")
    after = get_json(daemon, "/status")
    assert after["jobs"]["finished"] == before["jobs"]["finished"] + 1
    assert after["jobs"]["accepted"] == before["jobs"]["accepted"] + 1
    assert after.keys() == daemon.status().keys()


def test_paths_and_methods_that_are_not_there(daemon: Daemon) -> None:
    assert daemon.get("/")[0] == 404
    assert daemon.get("/status/../../etc/passwd")[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", http_port(daemon), timeout=10)
    connection.request("POST", "/status", body=b"x")
    assert connection.getresponse().status == 405
    connection.close()


def test_only_under_its_own_name(daemon: Daemon) -> None:
    """A page in a browser could otherwise reach the daemon by a name that leads to 127.0.0.1."""
    port = http_port(daemon)
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost"):
        assert daemon.get("/status", Host=host)[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        assert daemon.get("/status", Host=host)[0] == 400


def test_a_page_from_elsewhere_is_refused(daemon: Daemon) -> None:
    port = http_port(daemon)
    assert daemon.get("/status", Origin=f"http://127.0.0.1:{port}")[0] == 200
    for origin in ("http://evil.example", f"http://127.0.0.1:{port + 1}", f"https://127.0.0.1:{port}", "null"):
        assert daemon.get("/status", Origin=origin)[0] == 403


def test_only_loopback_is_bound(daemon: Daemon) -> None:
    """127.0.0.2 leads to this machine too: what listens on every address answers there."""
    for port in (http_port(daemon), int(daemon.ready["tcp"].rpartition(":")[2])):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)


def test_what_is_not_http_harms_nobody(daemon: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", http_port(daemon)), timeout=10) as sock:
        sock.sendall(b"\x83\xa2id\xa1x\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 400")
    assert get_json(daemon, "/health")["healthy"] is True


def test_no_http(folder: Path) -> None:
    with running(folder, "--no-http") as daemon:
        assert "http" not in daemon.ready
        assert daemon.answer("no page") == "no page"


def test_a_model_that_hangs_is_not_healthy(folder: Path) -> None:
    """One that is not isolated. The daemon itself goes on: it answers, and the job meets its deadline."""
    config = {"decode_s": 0.005, "fault": "hang", "fault_word": "hang"}
    flags = ("--no-isolate", "--step-timeout", "0.5", "--grace", "0.1")
    with running(folder, *flags, config=config) as daemon, daemon.connect() as client:
        assert daemon.answer("well") == "well"
        assert daemon.get("/health")[0] == 200
        assert is_ack(client.ask({"id": "hangs", "text": "hang", "timeout_ms": 1500}))
        eventually(lambda: daemon.get("/health")[0] == 503)
        _, health = daemon.get("/health")
        assert health == {
            "status": "unhealthy", "healthy": False, "stalled": [daemon.ready["model"]], "not_ready": []
        }  # fmt: skip
        assert get_json(daemon, "/status")["models"][0]["stalled_s"] >= 0.5
        ended = client.receive()
        assert (ended["id"], ended["error"], ended["code"]) == ("hangs", "deadline_exceeded", 408)
        eventually(lambda: "model makes no progress" in daemon.log)


def http_port(daemon: Daemon) -> int:
    return int(daemon.ready["http"].rpartition(":")[2])
