"""What is known of a run's steps while they go on: its events in, rows for a person out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from granville.crucible.running.events import DeltaEvent, Event, RunEvent, StepEvent

MAX_TAIL_CHARS = 2000
MAX_CHILDREN = 6
"""Of one group, that are shown one by one; beyond it those that have finished are counted."""
SEPARATORS = ".[/"


@dataclass(slots=True)
class Row:
    key: str
    kind: str
    started_at: float
    state: str = "running"
    ended_at: float | None = None
    attempt: int = 1
    tokens: int = 0
    """Written; while it runs, as many as there were deltas."""
    error: str | None = None
    retry_in_s: float | None = None
    waits: str | None = None
    """Why it cannot go on yet."""
    tail: str = ""
    """The end of what it has written so far."""
    hidden: int = 0
    """Steps in it that have finished and are not shown."""

    def seconds(self, now: float) -> float:
        return max(0.0, (now if self.ended_at is None else self.ended_at) - self.started_at)

    def rate(self, now: float) -> float:
        """Tokens a second."""
        seconds = self.seconds(now)
        return self.tokens / seconds if seconds > 0 else 0.0


class Board:
    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.run: RunEvent | None = None

    def take(self, event: Event) -> None:
        if isinstance(event, RunEvent):
            self.run = event
        elif isinstance(event, DeltaEvent):
            row = self.rows.get(event.step)
            if row is not None:
                row.tokens += 1
                row.tail = (row.tail + event.delta)[-MAX_TAIL_CHARS:]
        else:
            self._step(event)

    def _step(self, event: StepEvent) -> None:
        row = self.rows.get(event.step)
        if row is None or event.state == "running":
            same = row is not None and row.state == "running" and row.attempt == event.attempt
            since = row.started_at if row is not None and same else event.at
            row = self.rows[event.step] = Row(event.step, event.kind, since, attempt=event.attempt)
        row.state, row.attempt = event.state, event.attempt
        row.error, row.retry_in_s, row.waits = event.error, event.retry_in_s, event.waits
        if event.state == "running":
            return
        row.ended_at = event.at
        if event.duration_s is not None:
            row.started_at = event.at - event.duration_s
        row.tokens = (event.usage or {}).get("completion_tokens", row.tokens)

    def shown(self) -> list[tuple[int, Row]]:
        """Rows with how deep they lie, groups before what is in them, in the order in which they began."""
        children: dict[str | None, list[Row]] = {}
        for row in self.rows.values():
            children.setdefault(self._parent(row.key), []).append(row)
        return list(_walk(children, None, 0))

    def _parent(self, key: str) -> str | None:
        for place in range(len(key) - 1, 0, -1):
            if key[place] in SEPARATORS and key[:place] in self.rows:
                return key[:place]
        return None

    @property
    def streaming(self) -> Row | None:
        """The step that writes now and began last."""
        running = [row for row in self.rows.values() if row.state == "running" and row.tail]
        return max(running, key=lambda row: row.started_at) if running else None


def _walk(children: dict[str | None, list[Row]], parent: str | None, depth: int) -> Iterator[tuple[int, Row]]:
    rows = children.get(parent, [])
    whole = rows
    if parent is not None and len(rows) > MAX_CHILDREN:
        whole = [row for row in rows if row.state not in ("finished", "skipped")][-MAX_CHILDREN:]
    for row in whole:
        inner = children.get(row.key, [])
        row.hidden = 0
        if len(inner) > MAX_CHILDREN:
            row.hidden = sum(one.state in ("finished", "skipped") for one in inner)
        yield depth, row
        yield from _walk(children, row.key, depth + 1)
