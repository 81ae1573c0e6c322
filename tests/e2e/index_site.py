"""A registry on a web server of this machine: it knows ETags, and can be away, broken, or somebody else's."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class IndexSite:
    """Serves the files of `folder`; `instead` answers a path in another way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.instead: dict[str, tuple[int, bytes]] = {}
        self.answers: list[tuple[str, int]] = []
        """The path and the status of each answer so far."""
        self.etags = True
        self.url = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        status, body, etag = self._found(request.path)
        if etag and request.headers.get("If-None-Match") == etag:
            status, body = 304, b""
        self.answers.append((request.path, status))
        request.send_response(status)
        if etag:
            request.send_header("ETag", etag)
        if status in (301, 302):
            request.send_header("Location", body.decode())
            body = b""
        if status != 304:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _found(self, path: str) -> tuple[int, bytes, str | None]:
        if path in self.instead:
            return *self.instead[path], None
        try:
            body = (self.folder / path.lstrip("/")).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            return 404, b"", None
        return 200, body, f'"{hashlib.sha256(body).hexdigest()[:12]}"' if self.etags else None


@contextmanager
def serving(site: IndexSite, port: int = 0) -> Iterator[IndexSite]:
    """The site, at `site.url`; gone afterwards, as when a network is."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_port}/"
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()
