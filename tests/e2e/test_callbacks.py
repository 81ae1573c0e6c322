"""Where answers are brought: Unix sockets, loopback TCP, loopback HTTP, and nowhere else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.e2e.harness import Callback, Daemon, Map, eventually, is_ack, text_of, words

FLAGS = ("--tcp", "127.0.0.1:0", "--delivery-ttl", "3", "--slots", "4")


class Posts(ThreadingHTTPServer):
    """Keeps what is POSTed, as (path, content type, message); answers with `statuses` in turn, then with 204."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[tuple[str, str | None, Any]] = []
        self.statuses: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Posts

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((self.path, self.headers["content-type"], msgpack.unpackb(body)))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.send_header("location", f"{self.server.url}/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its own."""


@pytest.fixture
def posts() -> Iterator[Posts]:
    with Posts() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def tcp_callback() -> Iterator[tuple[Callback, str]]:
    with Callback(socket.create_server(("127.0.0.1", 0))) as callback:
        yield callback, f"tcp://127.0.0.1:{callback.sock.getsockname()[1]}"


def callbacks(daemon: Daemon) -> Map:
    counts: Map = daemon.status()["callbacks"]
    return counts


def test_a_unix_socket(daemon: Daemon, folder: Path) -> None:
    delivered = callbacks(daemon)["delivered"]
    with Callback.at(folder / "c.sock") as callback:
        assert is_ack(daemon.ask({"id": "u", "text": "by unix", "callback": str(folder / "c.sock")}))
        (result,) = callback.messages()
    assert text_of(result) == "by unix"
    eventually(lambda: callbacks(daemon)["delivered"] == delivered + 1)
    assert daemon.ask({"op": "status", "id": "u"})["error"] == "unknown_job"


def test_tcp(daemon: Daemon) -> None:
    with tcp_callback() as (callback, address):
        assert is_ack(daemon.ask({"id": "t", "text": "by tcp", "callback": address}))
        (result,) = callback.messages()
    assert text_of(result) == "by tcp"


def test_http(daemon: Daemon, posts: Posts) -> None:
    assert is_ack(daemon.ask({"id": "h", "text": "by http", "callback": f"{posts.url}/results?key=1"}))
    eventually(lambda: posts.received)
    ((path, content_type, result),) = posts.received
    assert path == "/results?key=1"
    assert content_type == "application/msgpack"
    assert text_of(result) == "by http"


def test_http_takes_deltas_in_order(daemon: Daemon, posts: Posts) -> None:
    request = {"id": "h", "text": words(30), "stream": True, "callback": f"{posts.url}/results"}
    assert is_ack(daemon.ask(request))
    eventually(lambda: posts.received and "tool_id" in posts.received[-1][2])
    *deltas, result = [message for _, _, message in posts.received]
    assert len(deltas) > 1
    assert "".join(delta["delta"] for delta in deltas) == text_of(result) == words(30)


def test_http_is_tried_again_while_it_is_busy(daemon: Daemon, posts: Posts) -> None:
    posts.statuses = [503, 429, 500]
    delivered = callbacks(daemon)["delivered"]
    assert is_ack(daemon.ask({"id": "busy", "text": "x", "callback": posts.url}))
    eventually(lambda: callbacks(daemon)["delivered"] == delivered + 1)
    assert [message["id"] for _, _, message in posts.received] == ["busy"] * 4


def test_http_that_refuses_is_not_tried_again(daemon: Daemon, posts: Posts) -> None:
    posts.statuses = [404]
    failed = callbacks(daemon)["failed"]
    assert is_ack(daemon.ask({"id": "no", "text": "x", "callback": posts.url}))
    eventually(lambda: callbacks(daemon)["failed"] == failed + 1)
    assert len(posts.received) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(daemon: Daemon, posts: Posts, status: int) -> None:
    posts.statuses = [status]
    failed = callbacks(daemon)["failed"]
    assert is_ack(daemon.ask({"id": "redirect", "text": "x", "callback": f"{posts.url}/first"}))
    eventually(lambda: callbacks(daemon)["failed"] == failed + 1)
    assert [path for path, _, _ in posts.received] == ["/first"]


def test_an_error_goes_to_the_callback_in_the_results_place(daemon: Daemon, posts: Posts) -> None:
    request = {"id": "late", "text": words(3000), "max_tokens": 3000, "timeout_ms": 100, "callback": posts.url}
    assert is_ack(daemon.ask(request))
    eventually(lambda: posts.received)
    ((_, _, error),) = posts.received
    assert (error["id"], error["error"], error["code"]) == ("late", "deadline_exceeded", 408)


def test_a_callback_that_comes_late_is_awaited(daemon: Daemon, folder: Path) -> None:
    path = folder / "late.sock"
    assert is_ack(daemon.ask({"id": "early", "text": "I waited", "callback": str(path)}))
    eventually(lambda: daemon.ask({"op": "status", "id": "early"}).get("state") == "delivering")
    with Callback.at(path) as callback:
        (result,) = callback.messages()
    assert text_of(result) == "I waited"


def test_a_stale_callback_socket_is_tried_again(daemon: Daemon, folder: Path) -> None:
    """Nobody listens behind the file: the owner may be about to come back."""
    path = folder / "stale.sock"
    with Callback.at(path):
        pass
    assert is_ack(daemon.ask({"id": "stale", "text": "come back", "callback": str(path)}))
    eventually(lambda: daemon.ask({"op": "status", "id": "stale"}).get("state") == "delivering")
    path.unlink()
    with Callback.at(path) as callback:
        (result,) = callback.messages()
    assert text_of(result) == "come back"


def test_a_callback_with_a_full_backlog_loses_nothing(daemon: Daemon, folder: Path) -> None:
    """The system lets a few connections in; all the others have to be tried again."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "full.sock"))
        listening.listen(0)
        with daemon.connect() as client:
            for n in range(30):
                request = {"id": f"full-{n}", "text": f"answer {n}", "callback": str(folder / "full.sock")}
                assert is_ack(client.ask(request))
        eventually(lambda: daemon.counts()["delivering"] > 20)
        callback = Callback(listening)
        answers = [message for _ in range(30) for message in callback.messages()]
    assert {message["id"]: text_of(message) for message in answers} == {f"full-{n}": f"answer {n}" for n in range(30)}


def test_a_repeated_request_goes_to_the_newest_callback(daemon: Daemon, folder: Path) -> None:
    accepted = daemon.counts()["accepted"]
    with Callback.at(folder / "old.sock") as old, Callback.at(folder / "new.sock") as new:
        request = {"id": "again", "text": words(100)}
        for name in ("old", "new"):
            assert is_ack(daemon.ask(request | {"callback": str(folder / f"{name}.sock")}))
        (result,) = new.messages()
        assert text_of(result) == words(100)
        old.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            old.sock.accept()
    assert daemon.counts()["accepted"] == accepted + 1


@pytest.mark.parametrize(
    "address",
    [
        "tcp://10.0.0.1:9001",
        "tcp://example.com:9001",
        "tcp://0.0.0.0:9001",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:99999",
        "http://10.0.0.1/",
        "http://example.com/results",
        "http://127.0.0.1@example.com/",
        "http://169.254.169.254/",
        "https://127.0.0.1/",
        "ftp://127.0.0.1/",
        "c.sock",
    ],
)
def test_any_other_address_is_refused(daemon: Daemon, address: str) -> None:
    refused = daemon.ask({"id": "far", "text": "x", "callback": address})
    assert (refused["id"], refused["error"], refused["code"]) == ("far", "bad_request", 400)
    assert "callback" in refused["message"]


def test_over_tcp_only_a_tcp_callback_may_be_named(daemon: Daemon, folder: Path, posts: Posts) -> None:
    with daemon.connect_tcp() as client:
        for address in (str(folder / "c.sock"), posts.url):
            refused = client.ask({"id": "x", "text": "x", "callback": address})
            assert (refused["id"], refused["error"], refused["code"]) == ("x", "bad_request", 400)
        with tcp_callback() as (callback, address):
            assert is_ack(client.ask({"id": "x", "text": "by tcp", "callback": address}))
            (result,) = callback.messages()
            assert text_of(result) == "by tcp"
    assert posts.received == []
