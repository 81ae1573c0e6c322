"""`/health`, `/status` and `/models` as JSON."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class Kernel(Protocol):
    """What HTTP asks of the kernel; every call returns at once."""

    def health(self) -> dict[str, Any]: ...

    def status(self) -> dict[str, Any]: ...

    def list_models(self) -> dict[str, Any]: ...


def make_app(kernel: Kernel) -> Starlette:
    async def health(request: Request) -> Response:
        state = kernel.health()
        return _json(state, 200 if state["healthy"] else 503)

    async def status(request: Request) -> Response:
        return _json(kernel.status())

    async def models(request: Request) -> Response:
        return _json(kernel.list_models())

    return Starlette(
        routes=[Route("/health", health), Route("/status", status), Route("/models", models)],
        # A page in a browser must not reach the daemon under a name of its own (DNS rebinding).
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )


def _json(value: dict[str, Any], status: int = 200) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
