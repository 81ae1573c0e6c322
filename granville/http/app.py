"""`/health`, `/status` and `/models` as JSON."""

from __future__ import annotations

from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from granville.doors.asgi import json_response, local_only


class Kernel(Protocol):
    """What HTTP asks of the kernel; every call returns at once."""

    def health(self) -> dict[str, Any]: ...

    def status(self) -> dict[str, Any]: ...

    def list_models(self) -> dict[str, Any]: ...


def make_app(kernel: Kernel) -> Starlette:
    async def health(request: Request) -> Response:
        state = kernel.health()
        return json_response(state, 200 if state["healthy"] else 503)

    async def status(request: Request) -> Response:
        return json_response(kernel.status())

    async def models(request: Request) -> Response:
        return json_response(kernel.list_models())

    return Starlette(
        routes=[Route("/health", health), Route("/status", status), Route("/models", models)],
        middleware=local_only(),
    )
