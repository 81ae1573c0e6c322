"""One file on a real server on loopback, which can cut off, refuse, redirect, lie and come back."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATA = b"GGUF\x03\0\0\0" + random.Random(7).randbytes(3_000_000)


class Site:
    """One file on a server. Each request is answered by the next of `plan`, or by `serve` when it is used up."""

    def __init__(self) -> None:
        self.data = DATA
        self.plan: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.ranges: list[str | None] = []
        """The Range header of each request so far."""
        self.encodings: set[str | None] = set()
        """What the requests accepted a body to be compressed with."""
        self.started = threading.Event()
        self.go_on = threading.Event()
        """Lets `dribble` finish."""
        self.url = ""
        self.headers: list[dict[str, str]] = []
        """Of each request so far, names in lower case."""
        self.extra: dict[str, str] = {}
        """Headers that `serve` sends along, such as an ETag."""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.ranges.append(request.headers.get("Range"))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.encodings.add(request.headers.get("Accept-Encoding"))
        (self.plan.pop(0) if self.plan else self.serve)(request)

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        self.send(request, self.data)

    def in_pieces(self, request: BaseHTTPRequestHandler) -> None:
        """No more than a megabyte of what a Range asks for, as some caches do it."""
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        assert asked
        piece = self.data[int(asked[1]) :][:1_000_000]
        request.send_response(206)
        request.send_header("Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(piece) - 1}/{len(self.data)}")
        request.send_header("Content-Length", str(len(piece)))
        request.end_headers()
        request.wfile.write(piece)

    def send(self, request: BaseHTTPRequestHandler, body: bytes, *, most: int | None = None) -> None:
        """The body, or what the Range asks of it; after `most` bytes the connection ends."""
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        condition = request.headers.get("If-Range")
        if condition is not None and condition not in (self.extra.get("ETag"), self.extra.get("Last-Modified")):
            asked = None
        start = int(asked[1]) if asked else 0
        if asked and start >= len(body):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(body)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if asked else 200)
        if asked:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        for name, value in self.extra.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body[start:][:most])
        if most is not None:
            request.close_connection = True

    def cut_after(self, size: int) -> Callable[[BaseHTTPRequestHandler], None]:
        return lambda request: self.send(request, self.data, most=size)

    def without_ranges(self, request: BaseHTTPRequestHandler) -> None:
        del request.headers["Range"]
        self.send(request, self.data)

    def status(self, code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(code)
            for name, value in headers.items():
                request.send_header(name.replace("_", "-"), value)
            request.send_header("Content-Length", "0")
            request.end_headers()

        return answer

    def endless(self, request: BaseHTTPRequestHandler) -> None:
        """A body without a length, which the client has to end."""
        request.send_response(200)
        request.end_headers()
        request.close_connection = True
        try:
            while True:
                request.wfile.write(bytes(1 << 16))
        except (BrokenPipeError, ConnectionResetError):
            return

    def dribble(self, request: BaseHTTPRequestHandler) -> None:
        """A third of the file, and the rest when `go_on` is set."""
        request.send_response(200)
        request.send_header("Content-Length", str(len(self.data)))
        request.end_headers()
        request.close_connection = True
        try:
            request.wfile.write(self.data[:1_000_000])
            self.started.set()
            self.go_on.wait(60)
            request.wfile.write(self.data[1_000_000:])
        except (BrokenPipeError, ConnectionResetError):
            return


@contextmanager
def serving(made: Site) -> Iterator[Site]:
    """The site on a port of its own, until the body ends; whoever it keeps waiting goes on then."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            made.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        daemon_threads = False

        def handle_error(self, *_: object) -> None:
            """A client that breaks off is what these tests are about."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        made.url = f"http://127.0.0.1:{server.server_address[1]}/files/model.gguf"
        yield made
        made.go_on.set()
        server.shutdown()
        thread.join()
