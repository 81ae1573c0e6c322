"""Where runs are looked up: in the daemon, if one is there, else in the journal itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio

from granville.cli.crucible.options import open_journal
from granville.crucible.client import CrucibleClient, connect_crucible
from granville.crucible.journal.runs import Journal
from granville.errors import NoDaemon

T = TypeVar("T")


def look_up(
    socket: str,
    journal: Path | None,
    ask: Callable[[CrucibleClient], Awaitable[T]],
    read: Callable[[Journal], Awaitable[T]],
) -> T:
    """What the daemon says to `ask`; what `read` finds in the journal when there is none, or when `--journal` names
    one."""

    async def work() -> T:
        if journal is None:
            try:
                async with connect_crucible(socket) as client:
                    return await ask(client)
            except NoDaemon:
                await trio.lowlevel.checkpoint()
        with open_journal(journal) as kept:
            return await read(kept)

    return trio.run(work)
