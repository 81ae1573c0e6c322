"""What the HTTP of both daemons has in common: who may ask, how much, and how it is answered.

Both listen on 127.0.0.1, which any page in a browser of this machine can send requests to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from granville.errors import BadRequest, GranvilleError, TooLarge

HOSTS = ["127.0.0.1", "localhost"]


def local_only() -> list[Middleware]:
    """A page must not reach the daemon under a name of its own (DNS rebinding), nor send it a form."""
    return [Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(SameOrigin)]


class SameOrigin:
    """Refuses what a page from elsewhere asks for. A browser names the page's origin in what could change something,
    and in what reads across origins; a program that is no browser names none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and origin != f"http://{headers.get('host', '')}":
                refusal = Response("this is for pages of the daemon's own\n", 403, media_type="text/plain")
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(value), status, {"cache-control": "no-store", **(headers or {})},
        media_type="application/json",
    )  # fmt: skip


def error_response(error: GranvilleError, more: Mapping[str, Any] | None = None) -> Response:
    """An error as the socket tells it, with the code as status. 499 has no meaning in HTTP: there it is 409."""
    body: dict[str, Any] = {"error": error.error, "code": error.code, "message": error.message, **(more or {})}
    headers = {}
    if error.retry_after_ms is not None:
        body["retry_after_ms"] = error.retry_after_ms
        headers["retry-after"] = str(max(1, -(-error.retry_after_ms // 1000)))
    return json_response(body, 409 if error.code == 499 else error.code, headers)


class BoundedBody:
    """A request's body, of which no more than so many bytes are taken. Raises TooLarge in place of the next part."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._taken = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._taken += len(message.get("body", b""))
        if self._taken > self._max_bytes:
            raise TooLarge(f"a request may have {self._max_bytes} bytes")
        return message


def content_length(headers: Headers, max_bytes: int) -> None:
    """Raises TooLarge for a body that says beforehand that it is; BadRequest for what is no number."""
    said = headers.get("content-length")
    if said is None:
        return
    if not said.isdecimal():
        raise BadRequest("content-length: expected a number of bytes")
    if int(said) > max_bytes:
        raise TooLarge(f"a request may have {max_bytes} bytes, and this one has {said}")
