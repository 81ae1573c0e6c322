"""`crucible runs list` and `cancel`."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich import box
from rich.table import Table
from rich.text import Text

from granville.cli.crucible.options import Crucible, JournalFile, Json
from granville.cli.crucible.source import look_up
from granville.cli.exits import OK
from granville.cli.status import make_console, seconds
from granville.cli.terminal import note, printable, show
from granville.config import DEFAULT_CRUCIBLE_SOCKET
from granville.crucible.client import CrucibleClient
from granville.crucible.daemon.desk import builtins
from granville.crucible.journal.runs import Journal
from granville.crucible.running.events import RunState
from granville.crucible.running.runner import open_runner

STYLES = {
    "running": "cyan", "finished": "green", "failed": "red", "cancelled": "yellow", "interrupted": "yellow",
    "skipped": "dim",
}  # fmt: skip
DEFAULT_LIMIT = 20


def runs(
    *,
    limit: Annotated[int, Parameter(name=("--limit", "-n"), help="How many at most.")] = DEFAULT_LIMIT,
    state: Annotated[RunState | None, Parameter(help="Only those in this state.")] = None,
    socket: Crucible = DEFAULT_CRUCIBLE_SOCKET,
    journal: JournalFile = None,
    json: Json = False,
) -> int:
    """List the runs, the latest first: what `crucible runs list` does.

    They are the daemon's if one is there, and otherwise those in the journal.
    """
    return list_runs(limit=limit, state=state, socket=socket, journal=journal, json=json)


def list_runs(
    *,
    limit: Annotated[int, Parameter(name=("--limit", "-n"), help="How many at most.")] = DEFAULT_LIMIT,
    state: Annotated[RunState | None, Parameter(help="Only those in this state.")] = None,
    socket: Crucible = DEFAULT_CRUCIBLE_SOCKET,
    journal: JournalFile = None,
    json: Json = False,
) -> int:
    """List the runs, the latest first: the daemon's if one is there, and otherwise those in the journal."""

    async def ask(client: CrucibleClient) -> list[dict[str, Any]]:
        return await client.runs(limit, state)

    async def read(kept: Journal) -> list[dict[str, Any]]:
        return [builtins(record) for record in kept.runs(limit, state)]

    found = look_up(socket, journal, ask, read)
    if json:
        show(msgspec.json.encode(found).decode(), end="\n")
    elif not found:
        note("no runs")
    else:
        make_console().print(_table(found))
    return OK


def cancel(
    id: Annotated[str, Parameter(help="A run's id.")],
    /,
    *,
    socket: Crucible = DEFAULT_CRUCIBLE_SOCKET,
    journal: JournalFile = None,
) -> int:
    """End a run: what it asks of Granville is cancelled, and it cannot be resumed.

    One that another process executes has to be ended there, with Ctrl-C.
    """

    async def ask(client: CrucibleClient) -> str:
        return await client.cancel(id)

    async def read(kept: Journal) -> str:
        async with open_runner(journal=kept) as runner:
            return (await runner.cancel(id)).state

    show(f"{id} {look_up(socket, journal, ask, read)}", end="\n")
    return OK


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("run", "workflow", "state", "began"):
        table.add_column(title, overflow="fold")
    for title in ("took", "steps"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for run in found:
        state = str(run["state"])
        table.add_row(
            Text(printable(run["id"])),
            Text(printable(run["workflow"])),
            Text(state, STYLES.get(state, "")),
            when(run["created_at"]),
            took(run),
            str(run["steps_done"]),
            Text(printable(" ".join((run["error"] or "").split()))[:120], "dim"),
        )
    return table


def took(run: dict[str, Any]) -> str:
    """Nothing of a run whose process has ended before it did: it was not there to say when."""
    if run["state"] == "interrupted":
        return ""
    end = time.time() if run["state"] == "running" else run["updated_at"]
    return seconds(max(0.0, end - run["created_at"]))


def when(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
