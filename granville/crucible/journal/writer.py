"""One commit of what many steps write at the same time: a commit costs one wait for the disk, however much is in it."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from granville.crucible.journal.runs import Journal
from granville.crucible.journal.statements import Statement
from granville.errors import GranvilleError

log = logging.getLogger(__name__)

T = TypeVar("T")
Hop = Callable[..., Awaitable[Any]]
"""Calls a function with its arguments where it may block: `trio.to_thread.run_sync`."""


class JournalFailed(GranvilleError):
    """What has been done cannot be written down; the run stops, and can be resumed where the journal ends."""

    error = "journal_failed"
    code = 500


LINGER_S = 0.2
"""How long what nobody waits for may wait for a commit that somebody does."""


class _Batch:
    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self.wanted = trio.Event()
        """Somebody waits for it."""
        self.done = trio.Event()
        self.error: JournalFailed | None = None


class Writer:
    """Statements are written in the order in which they are given."""

    def __init__(self, journal: Journal, hop: Hop) -> None:
        self.journal = journal
        self._hop = hop
        self._batch = _Batch()
        self._news = trio.Event()
        self._is_closing = False
        self._has_ended = False

    def put(self, *statements: Statement) -> None:
        """Have it written with the next commit; nobody waits for it."""
        self._batch.statements += statements
        self._news.set()

    async def commit(self, *statements: Statement) -> None:
        """Write, and return when it is on the disk. Not given up half-way by a cancellation: whoever has called knows
        what the journal holds. Raises JournalFailed."""
        if self._has_ended:
            raise JournalFailed(f"{self.journal.path}: the journal has been closed")
        batch = self._batch
        self.put(*statements)
        batch.wanted.set()
        with trio.CancelScope(shield=True):
            await batch.done.wait()
        if batch.error is not None:
            raise batch.error

    async def run(self) -> None:
        """Started by: the runner. Ends when: `close` was called and all is written. Cancelled by: nobody; whoever waits
        for a commit may be sure of an answer."""
        with trio.CancelScope(shield=True):
            while not self._is_closing or self._batch.statements:
                await self._news.wait()
                self._news = trio.Event()
                with trio.move_on_after(LINGER_S):
                    await self._batch.wanted.wait()
                batch, self._batch = self._batch, _Batch()
                if batch.statements:
                    await self._write(batch)
                batch.done.set()
            self._has_ended = True

    def close(self) -> None:
        self._is_closing = True
        self._batch.wanted.set()
        self._news.set()

    async def _write(self, batch: _Batch) -> None:
        try:
            await self._hop(self.journal.apply, batch.statements)
        except (sqlite3.Error, OSError, RuntimeError) as error:  # RuntimeError: no thread could be started
            log.error("journal not written file=%s error=%s", self.journal.path, error)
            batch.error = JournalFailed(f"{self.journal.path}: the journal cannot be written: {error}")
        except Exception as error:  # whatever it is, whoever waits has to be told: nothing else can end their waiting
            log.exception("journal not written file=%s", self.journal.path)
            batch.error = JournalFailed(f"{self.journal.path}: the journal cannot be written: {error}")
