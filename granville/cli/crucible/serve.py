"""`crucible serve`: composes the daemon that runs workflows for other programs."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated

import trio
from cyclopts import Parameter

from granville.cli.crucible.options import Allow, JournalFile, OwnTools, WaitForGranville, open_journal
from granville.cli.lifetime import log_to_stderr, raise_open_files_limit, serve_until_told
from granville.client.address import DEFAULT_ADDRESS
from granville.config import DEFAULT_CRUCIBLE_TCP_PORT
from granville.crucible.daemon.daemon import Serving, run_daemon
from granville.crucible.daemon.settings import CrucibleConfig
from granville.crucible.tools.toolbox import toolboxes
from granville.doors.address import parse_tcp_bind
from granville.errors import BadRequest, StartupError


def serve(
    *,
    socket: Annotated[
        str, Parameter(name=("--socket", "-s"), help="Unix socket to listen on.")
    ] = CrucibleConfig.socket,
    port: Annotated[
        int, Parameter(name=("--port", "-p"), help="HTTP on 127.0.0.1; 0 for any free port.")
    ] = CrucibleConfig.http_port,
    tcp: Annotated[
        str | None,
        Parameter(help=f"Listen on loopback TCP too: host:port, usually 127.0.0.1:{DEFAULT_CRUCIBLE_TCP_PORT}."),
    ] = None,
    granville: Annotated[
        str,
        Parameter(env_var="GRANVILLE_SOCKET", help="Where Granville listens: a socket's path, or tcp://host:port."),
    ] = DEFAULT_ADDRESS,
    allow: Allow = (),
    tools: OwnTools = (),
    max_runs: Annotated[
        int, Parameter(help="Runs that go on at once; the next one is refused, and told when to try again.")
    ] = CrucibleConfig.max_runs,
    journal: JournalFile = None,
    grace: Annotated[
        float, Parameter(help="Seconds that runs may go on after SIGTERM; then they wait for the next start.")
    ] = CrucibleConfig.grace_s,
    wait_for_granville: WaitForGranville = CrucibleConfig.wait_for_granville_s,
    delivery_ttl: Annotated[
        float, Parameter(help="Seconds that an unreachable callback is tried again.")
    ] = CrucibleConfig.delivery_ttl_s,
    max_connections: Annotated[int, Parameter(help="Client connections at once.")] = CrucibleConfig.max_connections,
    max_request_bytes: Annotated[
        int, Parameter(help="Largest message or body accepted.")
    ] = CrucibleConfig.max_request_bytes,
    http: Annotated[bool, Parameter(negative="--no-http", show_default=False, help="Serve HTTP.")] = True,
    verbose: Annotated[
        bool, Parameter(name=("--verbose", "-v", "-V"), negative=(), show_default=False, help="Show the daemon's log.")
    ] = False,
) -> int:
    """Start the daemon that runs workflows for other programs, and keep it running until SIGTERM or Ctrl-C.

    It takes runs on its Unix socket, as MessagePack, and over HTTP, where the page at / shows them;
    docs/crucible-operations.md has both. Granville need not be there yet: a step waits for it.

    What an earlier daemon with the same journal has not ended goes on at once, at the step it had reached. The first
    SIGTERM or Ctrl-C lets runs go on for `--grace`, and leaves the rest to the next start; a second ends at once.
    One line on standard output says when the daemon is ready.
    """
    try:
        at = None if tcp is None else parse_tcp_bind(tcp, DEFAULT_CRUCIBLE_TCP_PORT)
    except BadRequest as error:
        raise StartupError(error.message) from None
    toolbox_for = toolboxes(tools)
    config = CrucibleConfig(
        socket=socket, http_port=port, tcp=at, granville=granville, wait_for_granville_s=wait_for_granville,
        max_runs=max_runs, grace_s=grace, allow=toolbox_for.check(allow), tools=tuple(toolbox_for.catalogue.names),
        max_connections=max_connections,
        max_request_bytes=max_request_bytes, delivery_ttl_s=delivery_ttl,
    )  # fmt: skip
    log_to_stderr(verbose=verbose)
    raise_open_files_limit(config.open_files)
    with open_journal(journal) as kept:
        daemon = partial(run_daemon, config, kept, toolbox_for, http=http)
        return trio.run(serve_until_told, daemon, _announce, "crucible")


def _announce(serving: Serving) -> None:
    """The one line that says that everything is open."""
    words = ["crucible ready", f"socket={serving.socket}"]
    if serving.http_port is not None:
        words.append(f"http=http://127.0.0.1:{serving.http_port}")
    if serving.tcp is not None:
        words.append(f"tcp={serving.tcp[0]}:{serving.tcp[1]}")
    words.append(f"granville={serving.desk.config.granville}")
    if serving.taken_up:
        words.append(f"taken_up={serving.taken_up}")
    print(*words, f"pid={os.getpid()}", flush=True)
