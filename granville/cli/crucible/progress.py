"""A run's steps on stderr while they go on: lines that change on a terminal, lines that stay elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from typing import Self

import trio
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from granville.cli.crucible.board import Board, Row
from granville.cli.terminal import printable
from granville.client.background import Background
from granville.crucible.running.events import Event, StepEvent

REFRESH_S = 0.125
TAIL_LINES = 4
STYLES = {"running": "cyan", "finished": "green", "skipped": "dim", "failed": "red", "cancelled": "yellow"}
MARKS = {"running": "…", "finished": "✓", "skipped": "–", "failed": "✗", "cancelled": "×"}


class Progress:
    """`async with Progress() as progress: await progress.follow(events)`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._board = Board()
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        if self._console.is_terminal and not quiet:
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    @property
    def shows_texts(self) -> bool:
        """While they are written: on a terminal alone."""
        return self._live is not None

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._picture(ended=True), refresh=True)
            self._live.stop()

    async def follow(self, events: AsyncIterator[Event]) -> None:
        """Show events until there are no more."""
        async with Background() as nursery:
            nursery.start_soon(self._refresh)
            async for event in events:
                self.take(event)

    def take(self, event: Event) -> None:
        self._board.take(event)
        if self._live is not None or self._quiet or not isinstance(event, StepEvent):
            return
        if event.state != "running" or event.waits:
            line = _line(self._board.rows[event.step])
            print(printable(line), file=sys.stderr, flush=True)

    async def _refresh(self) -> None:
        """Started by: `follow`. Ends when: it is cancelled. Cancelled by: the last event."""
        while self._live is not None:
            self._live.update(self._picture(ended=False), refresh=True)
            await trio.sleep(REFRESH_S)

    def _picture(self, *, ended: bool) -> Group:
        now = time.time()
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(justify="right", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        rows = self._board.shown()
        room = max(3, self._console.height - TAIL_LINES - 2)
        hidden = 0 if ended else max(0, len(rows) - room)
        for depth, row in rows[hidden:]:
            style = STYLES.get(row.state, "")
            name = Text("  " * depth + MARKS.get(row.state, "?") + " ", style).append(printable(row.key), "")
            remark = Text(printable(_remark(row)), "red" if row.state == "failed" else "dim")
            table.add_row(name, f"{row.seconds(now):.1f} s", _rate(row, now), remark)
        parts: list[Table | Text] = []
        if hidden:
            parts.append(Text(f"({hidden} lines above)", "dim"))
        parts.append(table)
        writing = self._board.streaming
        if writing is not None and not ended:
            width = max(20, self._console.width - 2)
            lines = [part for line in printable(writing.tail).splitlines() for part in _cut(line, width)]
            parts.append(Text("\n".join(lines[-TAIL_LINES:]), "dim italic"))
        return Group(*parts)


def _cut(line: str, width: int) -> list[str]:
    return [line[start : start + width] for start in range(0, len(line), width)] or [""]


def _rate(row: Row, now: float) -> str:
    return f"{row.tokens} tokens, {row.rate(now):.1f}/s" if row.tokens else ""


def _remark(row: Row) -> str:
    words = []
    if row.hidden:
        words.append(f"{row.hidden} done")
    if row.attempt > 1:
        words.append(f"attempt {row.attempt}")
    if row.waits:
        words.append(f"waits: {' '.join(row.waits.split())}")
    if row.error:
        words.append(" ".join(row.error.split()))
    if row.retry_in_s is not None:
        words.append(f"again in {row.retry_in_s:.1f} s")
    return ", ".join(words)


def _line(row: Row) -> str:
    """What has become of a step, for a log."""
    now = row.ended_at or time.time()
    parts = [row.key, row.state]
    if row.state != "skipped":
        parts.append(f"{row.seconds(now):.1f} s")
    parts += filter(None, (_rate(row, now), _remark(row)))
    return "  ".join(parts)
