"""`http_get` against a real server on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import trio

from granville.crucible.tools import http
from granville.crucible.tools.interface import Call, NotAllowed, ToolFailed
from granville.crucible.tools.toolbox import toolboxes
from granville.crucible.workflow.model import Step, Workflow

pytestmark = pytest.mark.real_time
WORKFLOW = Workflow(name="w", steps=(Step(id="a", tool="value"),))


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        port = self.connection.getsockname()[1]
        where = {
            "/home": "/page",
            "/away": f"http://localhost:{port}/page",
            "/loop": "/loop",
            "/file": "file:///etc/passwd",
        }
        if self.path in where:
            self.answer(302, b"", location=where[self.path])
        elif self.path == "/endless":
            self.answer(200, None)
            try:
                while True:
                    self.wfile.write(b"x" * 65536)
            except OSError:
                self.close_connection = True
        elif self.path == "/hangs":
            time.sleep(2)
        elif self.path == "/packed":
            self.answer(200, b"\x1f\x8b", **{"content-encoding": "gzip"})
        elif self.path == "/picture":
            self.answer(200, b"\x89PNG", **{"content-type": "image/png"})
        else:
            self.answer(200 if self.path == "/page" else 404, self.headers["host"].encode())

    def answer(self, status: int, body: bytes | None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": "text/plain", **headers}.items():
            self.send_header(name, value)
        if body is not None:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args: Any) -> None:
        """Nothing is printed."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


async def get(url: str, *hosts: str) -> Any:
    async with toolboxes()(WORKFLOW, None, tuple(f"http_get:{host}" for host in hosts)) as box:
        with trio.fail_after(30):
            return await box.call("http_get", {"url": url}, Call("r-1", "a"))


async def test_pages_of_a_host_that_was_allowed(port: int) -> None:
    at = f"http://127.0.0.1:{port}"
    page = await get(f"{at}/page", "127.0.0.1")
    assert (page["status"], page["text"], page["cut"]) == (200, f"127.0.0.1:{port}", False)
    assert (await get(f"{at}/home", "127.0.0.1"))["url"] == f"{at}/page"
    assert (await get(f"{at}/nowhere", "127.0.0.1"))["status"] == 404
    assert (await get(f"{at}/picture", f"127.0.0.1:{port}"))["body"] == b"\x89PNG"
    page = await get(f"http://localhost:{port}/page", "localhost")
    assert page["text"] == f"localhost:{port}"


async def test_no_other_host_is_reached(port: int) -> None:
    at = f"http://127.0.0.1:{port}"
    with pytest.raises(NotAllowed, match=r"127\.0\.0\.1: not one of the hosts"):
        await get(f"{at}/page", "example.org")
    with pytest.raises(NotAllowed, match="localhost: not one of the hosts"):
        await get(f"{at}/away", "127.0.0.1")
    for url in (f"{at}/file", "file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1"):
        with pytest.raises(ToolFailed, match="http_get"):
            await get(url, "127.0.0.1")
    with pytest.raises(ToolFailed, match="over 5 redirects"):
        await get(f"{at}/loop", "127.0.0.1")


async def test_a_name_of_a_private_address_is_not_reached(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, to: int, **kwargs: Any) -> list[Any]:
        await trio.lowlevel.checkpoint()
        return [(2, 1, 6, "", ("127.0.0.1", to))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", resolve)
    with pytest.raises(NotAllowed, match=r"harmless\.example is 127\.0\.0\.1, an address of this machine"):
        await get(f"http://harmless.example:{port}/page", "harmless.example")
    page = await get(f"http://harmless.example:{port}/page", "harmless.example", "127.0.0.1")
    assert page["text"] == f"harmless.example:{port}"


async def test_what_never_ends_is_bounded(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    at = f"http://127.0.0.1:{port}"
    page = await get(f"{at}/endless", "127.0.0.1")
    assert page["cut"]
    assert len(page["text"]) == http.MAX_BODY_BYTES
    with pytest.raises(ToolFailed, match="packed"):
        await get(f"{at}/packed", "127.0.0.1")
    monkeypatch.setattr(http, "TOTAL_S", 0.1)
    with pytest.raises(ToolFailed, match=r"not there after 0\.1 s"):
        await get(f"{at}/hangs", "127.0.0.1")


async def test_a_host_is_allowed_with_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, to: int, **kwargs: Any) -> list[Any]:
        await trio.lowlevel.checkpoint()
        return [(2, 1, 6, "", ("127.0.0.1", to))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", resolve)
    for url, host in (
        ("http://a.example/", "a.example:80"),
        ("https://a.example/", "a.example:443"),
        ("https://a.example:443/", "a.example:443"),
        ("http://[::2]:8080/", "[::2]:8080"),
    ):
        with pytest.raises(NotAllowed, match="an address of this machine"):  # so far it has come
            await get(url, host)
    for url, host in (("https://a.example/", "a.example:80"), ("http://[::2:8080]/", "[::2]:8080")):
        with pytest.raises(NotAllowed, match="not one of the hosts"):
            await get(url, host)


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("1.1.1.1", True), ("2606:4700::1111", True), ("64:ff9b::101:101", True), ("127.0.0.1", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("224.0.0.1", False), ("::1", False),
        ("::ffff:10.0.0.1", False), ("64:ff9b::a00:1", False), ("2002:7f00:1::", False), ("::127.0.0.1", False),
        ("fec0::1", False), ("fe80::1%eth0", False), ("ff02::1", False),
    ],
)  # fmt: skip
def test_addresses_of_this_machine_or_its_network(address: str, is_public: bool) -> None:
    assert http.is_public(address) is is_public
