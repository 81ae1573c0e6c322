"""Tasks that serve the body of an `async with`, without a say in how it ends."""

from __future__ import annotations

from types import TracebackType

import trio


class Background:
    """A nursery whose tasks are cancelled when the body ends.

    A plain nursery wraps what its body raises in an ExceptionGroup; here the body's exceptions pass as they
    are, so that `except QueueFull` round a client works. A task that crashes cancels the body and raises.
    """

    def __init__(self) -> None:
        self._manager = trio.open_nursery()

    async def __aenter__(self) -> trio.Nursery:
        self._nursery = await self._manager.__aenter__()
        return self._nursery

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        crashed = self._nursery.cancel_scope.cancel_called
        self._nursery.cancel_scope.cancel()
        if crashed:
            # The body was ended by the nursery itself: only the nursery can tell its Cancelled from others.
            await self._manager.__aexit__(kind, error, traceback)
        else:
            await self._manager.__aexit__(None, None, None)
