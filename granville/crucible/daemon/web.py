"""HTTP of `crucible serve`: runs started, followed and fetched, and a page that shows them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from granville.crucible.daemon.bodies import read_run
from granville.crucible.daemon.desk import Desk
from granville.crucible.daemon.metrics import metrics_text
from granville.crucible.daemon.page import CONTENT_POLICY, PAGE
from granville.crucible.messages import MAX_LISTED_RUNS, event_map, more_of
from granville.crucible.running.events import DeltaEvent, RunEvent, RunState
from granville.crucible.running.run import Run
from granville.doors.asgi import error_response, json_response, local_only
from granville.doors.sse import EventStream, server_event
from granville.errors import BadRequest, GranvilleError, UnknownJob
from granville.wire.messages import convert

CHANGES_EVERY_S = 0.25
END = "end"
"""The id of a run's last event."""


def make_app(desk: Desk) -> Starlette:
    bodies = trio.CapacityLimiter(desk.config.max_bodies)

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE, headers={"content-security-policy": CONTENT_POLICY, "cache-control": "no-store"})

    async def health(request: Request) -> Response:
        state = await desk.health()
        return json_response(state, 200 if state["healthy"] else 503)

    async def status(request: Request) -> Response:
        return json_response(desk.status())

    async def metrics(request: Request) -> Response:
        return Response(metrics_text(desk.status()), media_type="text/plain; version=0.0.4")

    def accepted(run: Run) -> Response:
        """It goes on by itself: whoever asks for it comes again."""
        desk.hold(run.id, None)
        href = f"/runs/{run.id}"
        return json_response({"id": run.id, "status": "accepted", "href": href}, 202, {"location": href})

    async def start(request: Request) -> Response:
        async with bodies:
            order = await read_run(desk, request)
        run = await desk.begin_read(order.workflow, order.folder, order.inputs, order.id)
        return accepted(run)

    async def runs(request: Request) -> Response:
        limit, state = _listing(request)
        return json_response({"runs": await desk.list(limit, state)})

    async def show(request: Request) -> Response:
        id = request.path_params["id"]
        shown = await desk.show(id, full=False)
        record = await desk.record(id)
        shown["run"]["outputs"] = _outputs(id, record.outputs)
        return json_response(shown)

    async def output(request: Request) -> Response:
        id, name = request.path_params["id"], request.path_params["name"]
        record = await desk.record(id)
        if record.outputs is None:
            raise UnknownJob(f"{id}: the run is {record.state}, and has no outputs yet")
        if name not in record.outputs:
            raise UnknownJob(f"{name}: no output of this run; it has {', '.join(record.outputs)}")
        return _value(record.outputs[name])

    async def cancel(request: Request) -> Response:
        return json_response(await desk.cancel(request.path_params["id"]))

    async def resume(request: Request) -> Response:
        run = await desk.resume(request.path_params["id"], request.query_params.get("retry"))
        return accepted(run)

    async def events(request: Request) -> Any:
        id = request.path_params["id"]
        await desk.check_followable(id)  # an unknown one is 404, not an empty stream
        record = await desk.record(id)
        last = request.headers.get("last-event-id", "")
        if last == END and record.state != "running":
            return Response(status_code=204)  # a browser would ask for ever
        epoch, _, number = last.partition(":")
        seen = int(number) if epoch == desk.epoch(id) and number.isdecimal() else 0
        return EventStream(_run_events(desk, id, seen))

    async def changes(request: Request) -> Any:
        return EventStream(_changes(desk))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, GranvilleError)
        desk.counters.rejected += 1
        return error_response(error, more_of(error))

    return Starlette(
        routes=[
            Route("/", page),
            Route("/health", health),
            Route("/status", status),
            Route("/metrics", metrics),
            Route("/changes", changes),
            Route("/runs", runs, methods=["GET"]),
            Route("/runs", start, methods=["POST"]),
            Route("/runs/{id}", show),
            Route("/runs/{id}/events", events),
            Route("/runs/{id}/cancel", cancel, methods=["POST"]),
            Route("/runs/{id}/resume", resume, methods=["POST"]),
            Route("/runs/{id}/outputs/{name}", output),
        ],
        middleware=local_only(),
        exception_handlers={GranvilleError: refused},
    )


def _listing(request: Request) -> tuple[int, RunState | None]:
    class Listing(msgspec.Struct):
        limit: int = 50
        state: RunState | None = None

    given: dict[str, Any] = dict(request.query_params)
    if "limit" in given:
        if not given["limit"].isdecimal() or not 1 <= int(given["limit"]) <= MAX_LISTED_RUNS:
            raise BadRequest(f"limit: expected a number from 1 to {MAX_LISTED_RUNS}")
        given["limit"] = int(given["limit"])
    listing = convert(given, Listing, {"state": "one of running, finished, failed, cancelled, interrupted"})
    return listing.limit, listing.state


def _outputs(id: str, outputs: dict[str, Any] | None) -> dict[str, Any] | None:
    """Values as JSON; sound by where it is."""
    if outputs is None:
        return None
    return {
        name: {"bytes": len(value), "href": f"/runs/{id}/outputs/{name}"} if isinstance(value, bytes) else value
        for name, value in outputs.items()
    }


def _value(value: Any) -> Response:
    headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
    if isinstance(value, bytes):
        is_wav = value[:4] == b"RIFF" and value[8:12] == b"WAVE"
        return Response(value, headers=headers, media_type="audio/wav" if is_wav else "application/octet-stream")
    if isinstance(value, str):
        return Response(value, headers=headers, media_type="text/plain; charset=utf-8")
    return json_response(value, headers=headers)


async def _run_events(desk: Desk, id: str, seen: int) -> AsyncGenerator[bytes, None]:
    """From the start, or behind the state of that number."""
    epoch = desk.epoch(id)
    async with aclosing(desk.events(id, after=seen)) as events:
        async for number, event in events:
            fields = event_map(event)
            if "outputs" in fields:
                fields["outputs"] = _outputs(id, fields["outputs"])
            ends = isinstance(event, RunEvent) and event.state != "running"
            place = END if ends else f"{epoch}:{number}"
            yield server_event(fields["event"], fields, None if isinstance(event, DeltaEvent) else place)


async def _changes(desk: Desk) -> AsyncGenerator[bytes, None]:
    """Says that the list of runs is another one now, and no oftener than that can be read."""
    number = -1
    while True:
        number = await desk.changes.after(number)
        yield server_event("changed", {"number": number})
        await trio.sleep(CHANGES_EVERY_S)
