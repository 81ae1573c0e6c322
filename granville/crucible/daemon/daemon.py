"""The daemon's tree on one page: which tasks there are, in which order they start, and how they end."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass

import trio

from granville.crucible.daemon.connection import Connection
from granville.crucible.daemon.deliveries import Deliveries
from granville.crucible.daemon.desk import Desk
from granville.crucible.daemon.settings import CrucibleConfig
from granville.crucible.daemon.web import make_app
from granville.crucible.journal.runs import Journal
from granville.crucible.running.context import ToolboxFor
from granville.crucible.running.runner import open_runner
from granville.doors.listener import Listener
from granville.doors.peer import Peer
from granville.doors.senders import Senders
from granville.doors.sockets import sole_owner, tcp_listener, unix_listener
from granville.doors.transport import HttpxTransport
from granville.doors.web import http_socket, serve_http

log = logging.getLogger(__name__)

FLUSH_S = 10.0
"""At the end: how long clients and callbacks may take to read what is due to them."""


@dataclass(frozen=True)
class Serving:
    """What the ready line tells."""

    desk: Desk
    socket: str
    http_port: int | None
    tcp: tuple[str, int] | None
    taken_up: int
    """Runs that an earlier daemon had left."""
    ended: trio.Event

    def stop(self) -> str | None:
        """Let what runs go on for a while, then end. What it waits for, in words for a person."""
        self.desk.stop()
        going_on, grace_s = self.desk.status()["runs"]["going_on"], self.desk.config.grace_s
        if not going_on or not grace_s:
            return None
        return f"{going_on} runs go on for {grace_s:g} s at most, then when the daemon is started again"


async def run_daemon(
    config: CrucibleConfig,
    journal: Journal,
    toolbox_for: ToolboxFor | None = None,
    *,
    http: bool = True,
    task_status: trio.TaskStatus[Serving] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until the desk's `stop_requested` is set, and then until what runs has ended or `--grace` has passed; what
    has not ended is taken up by the next daemon with this journal.

    Started by: `crucible serve`, or a test. Ends when: stopped. Cancelled by: a second signal. Raises StartupError
    when something cannot be opened.
    """
    ended = trio.Event()
    with ExitStack() as doors:
        # One daemon a journal: it takes up what has not ended. Doors next, before anything runs.
        doors.enter_context(sole_owner(os.fspath(journal.path), "--journal"))
        listeners = [doors.enter_context(unix_listener(config.socket))]
        if config.tcp is not None:
            listeners.append(tcp_listener(*config.tcp))
        web_socket = http_socket(config.http_port) if http else None
        http_port = None if web_socket is None else web_socket.getsockname()[1]

        # Two nurseries and the runner's own, for the order of the end: runs stop first, then those who follow them are
        # told, then the doors close.
        async with trio.open_nursery() as followers, trio.open_nursery() as front:
            async with open_runner(
                address=config.granville, journal=journal, toolbox_for=toolbox_for, max_runs=config.max_runs,
                wait_for_granville_s=config.wait_for_granville_s, served=True,
            ) as runner:  # fmt: skip
                desk = Desk(config, runner, followers)
                senders = Senders(config, desk.counters, followers, HttpxTransport())
                deliveries = Deliveries(desk, senders, journal.path.with_name(f"{journal.path.name}-callbacks"))

                def greet(stream: trio.SocketStream, peer: Peer) -> Connection:
                    return Connection(stream, peer, desk, deliveries)

                listener = Listener(config, desk.counters, greet)
                taken_up = await desk.resume_all()
                await deliveries.load()
                await front.start(listener.run, listeners)
                if web_socket is not None:
                    await front.start(serve_http, make_app(desk), web_socket)
                tcp = listeners[1].socket.getsockname()[:2] if config.tcp is not None else None
                task_status.started(Serving(desk, config.socket, http_port, tcp, len(taken_up), ended))

                await desk.stop_requested.wait()
                with trio.move_on_after(config.grace_s):
                    await desk.idle()
            await desk.idle()
            log.info("stopped interrupted=%d", desk.counters.ended["interrupted"])
            with trio.move_on_after(FLUSH_S):
                await desk.all_told()
                listener.hang_up()
                await listener.all_closed()
            front.cancel_scope.cancel()
            followers.cancel_scope.cancel()
    ended.set()
