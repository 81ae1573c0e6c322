"""How a daemon lives at the command line: its signals, its open files, its log, and its exit status."""

from __future__ import annotations

import logging
import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

import trio

from granville.cli import exits


class Serving(Protocol):
    """What a daemon that is ready has."""

    @property
    def ended(self) -> trio.Event: ...

    def stop(self) -> str | None:
        """Take nothing new, finish what runs, then end. What it waits for, in words for a person."""


S = TypeVar("S", bound=Serving)


async def serve_until_told(run: Callable[..., Awaitable[None]], announce: Callable[[S], None], program: str) -> int:
    """Run a daemon until a signal ends it: the first lets what runs finish, a second one, or one that comes before it
    is ready, ends at once. Its exit status."""
    with trio.open_signal_receiver(*ending_signals()) as signals:
        # A nursery for the signals beside the daemon that they end.
        async with trio.open_nursery() as nursery:
            ready: list[S] = []
            ended_by: list[int] = []
            nursery.start_soon(_obey, signals, ready, nursery.cancel_scope, ended_by, program)
            serving: S = await nursery.start(run)
            ready.append(serving)
            announce(serving)
            await serving.ended.wait()
            nursery.cancel_scope.cancel()
    return 128 + ended_by[0] if ended_by else exits.OK


def ending_signals() -> list[signal.Signals]:
    """Those that end the daemon, less what its starter wants ignored (as nohup does with SIGHUP)."""
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in ending if signal.getsignal(number) is not signal.SIG_IGN]


async def _obey(
    signals: AsyncIterator[int], ready: list[Any], scope: trio.CancelScope, ended_by: list[int], program: str
) -> None:
    """Started by: `serve_until_told`. Ends when: the daemon does. Cancelled by: the daemon's end."""
    asked = False
    async for number in signals:
        if ready and not asked:
            asked = True
            waits_for = ready[0].stop()
            if waits_for and sys.stderr.isatty():  # for the person who has pressed Ctrl-C and sees that it does not end
                print(f"{program}: {waits_for}; Ctrl-C ends at once", file=sys.stderr)
        else:
            ended_by.append(number)
            scope.cancel()


def log_to_stderr(*, verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)


def raise_open_files_limit(wanted: int) -> None:
    """As much of it as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        logging.getLogger(__name__).warning("open files limited allowed=%d wanted=%d", allowed, wanted)
