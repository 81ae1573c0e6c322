"""The whole tree on one page: which tasks there are, in which order they start, and how they end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import trio

from granville.config import ServeConfig
from granville.doors.listener import Listener
from granville.doors.peer import Peer
from granville.doors.senders import Senders
from granville.doors.sockets import tcp_listener, unix_listener
from granville.doors.transport import http_transport
from granville.doors.web import http_socket, serve_http
from granville.errors import ShuttingDown
from granville.journal.transcripts import open_transcripts
from granville.nursery.connection import Connection
from granville.nursery.desk import Desk
from granville.nursery.pool import ModelPlan, Planner, Pool
from granville.nursery.watchdog import watch
from granville.scheduling.roster import Roster

log = logging.getLogger(__name__)

FLUSH_S = 10.0
"""At the end: how long clients and callbacks may take to read what is due to them."""
CLOSE_S = 3.0
"""How long models may take to close; one that does not is left behind with its thread."""


@dataclass(frozen=True)
class Serving:
    """What the ready line tells."""

    desk: Desk
    socket: str
    http_port: int | None
    tcp: tuple[str, int] | None
    ended: trio.Event

    def stop(self) -> str | None:
        """Finish what runs, then end. What it waits for, in words for a person."""
        self.desk.stop()
        running, grace_s = self.desk.status()["jobs"]["running"], self.desk.config.grace_s
        return f"finishing what runs ({running}), for {grace_s:g} s at most" if running and grace_s else None


async def run_kernel(
    config: ServeConfig,
    plans: list[ModelPlan],
    make_app: Callable[[Desk], Any] | None = None,
    *,
    planner: Planner | None = None,
    task_status: trio.TaskStatus[Serving] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until the desk's `stop_requested` is set and what runs has ended.

    Started by: `granville serve`, or a test. Ends when: stopped, everything accepted having got its terminal
    message. Cancelled by: a second signal. Raises StartupError when something cannot be opened.
    """
    roster = Roster()
    transport = http_transport(config.callback_transport)
    ended = trio.Event()
    with ExitStack() as doors:
        # Doors first: a socket or port in use is known before a model takes seconds to load. Nobody is let in yet.
        listeners = [doors.enter_context(unix_listener(config.socket))]
        if config.tcp is not None:
            listeners.append(tcp_listener(*config.tcp))
        web_socket = http_socket(config.http_port) if make_app is not None else None
        http_port = web_socket.getsockname()[1] if web_socket is not None else None

        transcripts = doors.enter_context(
            open_transcripts(
                config.kv_dir, max_sessions=config.max_sessions, ttl_s=config.session_ttl_s,
                disk_bytes=config.kv_disk_bytes,
            )
        )  # fmt: skip
        desk = Desk(config, roster, transcripts)

        # Three nurseries, for the order of the end: clients are let go first, then models, then deliveries.
        async with trio.open_nursery() as callbacks:
            senders = Senders(config, desk.counters, callbacks, transport)
            async with trio.open_nursery() as models:
                await Pool(desk, models, planner).load_all(plans)
                async with trio.open_nursery() as front:
                    front.start_soon(watch, desk)
                    front.start_soon(desk.ranking.run)

                    def greet(stream: trio.SocketStream, peer: Peer) -> Connection:
                        return Connection(stream, peer, desk, senders)

                    listener = Listener(config, desk.counters, greet)
                    await front.start(listener.run, listeners)
                    if make_app is not None and web_socket is not None:
                        await front.start(serve_http, make_app(desk), web_socket)
                    tcp = listeners[1].socket.getsockname()[:2] if config.tcp is not None else None
                    task_status.started(Serving(desk, config.socket, http_port, tcp, ended))

                    await desk.stop_requested.wait()
                    await _drain(desk)
                    listener.hang_up()
                    with trio.move_on_after(FLUSH_S):
                        await listener.all_closed()
                    front.cancel_scope.cancel()
                for inference in desk.models:
                    inference.close()
                models.cancel_scope.deadline = trio.current_time() + CLOSE_S
            callbacks.cancel_scope.cancel()
    ended.set()


async def _drain(desk: Desk) -> None:
    """Wait until every accepted job has had its terminal message delivered; after the grace, end what still runs."""
    with desk.grace:
        await desk.all_ended.wait()
    for job in desk.admission.jobs():
        desk.end(job, ShuttingDown("the daemon is shutting down; the grace for running jobs has passed"))
    with trio.move_on_after(FLUSH_S):
        await desk.drained.wait()
    left = len(desk.admission)
    log.log(logging.WARNING if left else logging.INFO, "drained undelivered=%d", left)
