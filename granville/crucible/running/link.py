"""The way to Granville: one connection for all runs, made again when it breaks, and patience with a daemon that is
full, restarting or away.

Nothing is lost by a connection that breaks. A daemon ends the jobs of a client that goes away, so a request that had no
answer is asked again, under the same id; what was answered is in the journal. A callback of its own would save the work
of a job when only the connection broke; on a Unix socket that happens when one of the two processes dies.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio

from granville.client import Client, Request, Result, connect
from granville.crucible.running.gate import Gate
from granville.crucible.running.patience import FIRST_PAUSE_S, Patience
from granville.errors import ConnectionLost, GranvilleError, NoModel, TooLarge
from granville.wire.messages import Class, encode

log = logging.getLogger(__name__)

WAIT_FOR_GRANVILLE_S = 60.0
"""How long a step waits for a daemon that is away, unless told otherwise."""
TOLD_AFTER_S = 0.5
"""A shorter absence, such as a connection that is made again, is not worth a word."""
LARGE_REQUEST_BYTES = 256 << 10
"""Larger ones get a connection of their own: a daemon that takes none so large reads no further on it."""
MAX_LARGE_AT_ONCE = 16
DEADLINE_MARGIN_S = 0.5

Dial = Callable[[], AbstractAsyncContextManager[Client]]


class NotServed(GranvilleError):
    """Nobody serves what a step asks for; the daemon is there, and waiting does not help."""

    error = "no_model"
    code = 404


class _Attempt:
    """To connect; whoever wants a connection waits for the same one."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.client: Client | None = None
        self.error: GranvilleError | None = None


class Link:
    def __init__(
        self, address: str, *, wait_s: float = WAIT_FOR_GRANVILLE_S, dial: Dial | None = None, gate: Gate | None = None
    ) -> None:
        self.address = address
        self._wait_s = wait_s
        self._gate = gate or Gate()
        self._dial: Dial = dial or (lambda: connect(address))
        self._client: Client | None = None
        self._attempt = _Attempt()
        self._wanted = trio.Event()
        self._broken = trio.Event()
        self._large = trio.Semaphore(MAX_LARGE_AT_ONCE)

    async def run(self) -> None:
        """Started by: the runner. Ends when: never by itself. Cancelled by: the runner's end."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            self._broken = trio.Event()
            attempt = self._attempt
            try:
                async with self._dial() as client:
                    log.info("connected to granville address=%s", self.address)
                    self._client = attempt.client = client
                    attempt.done.set()
                    await self._broken.wait()
            except GranvilleError as error:
                self._attempt = _Attempt()
                attempt.error = error
                attempt.done.set()
                await trio.sleep(FIRST_PAUSE_S)

    async def ask(
        self, request: Request, *, run_id: str, priority: Class = "normal", on_delta: Callable[[str], None],
        on_wait: Callable[[str | None], None],
    ) -> Result:  # fmt: skip
        """Send a request and wait for its result, for as long as the caller's scope allows: a daemon that is full is
        asked again when it says, one that is away is waited for. Raises what the daemon answered, or, of one that
        stayed away, why it cannot be reached. `on_wait` is told why, when one has been away for a moment, and None when
        it is back."""
        patience = Patience(self._wait_s, random.uniform)
        on_its_own = len(encode(request)) > LARGE_REQUEST_BYTES
        has_told = False

        def reached() -> None:
            nonlocal has_told
            patience.reached()
            if has_told:
                has_told = False
                on_wait(None)

        while True:
            sent_at = trio.current_time()
            try:
                async with self._gate.place(run_id, priority):
                    if on_its_own:
                        async with self._large, self._dial() as client:
                            return await self._send(client, request, reached, on_delta)
                    client = await self.client()
                    try:
                        return await self._send(client, request, reached, on_delta)
                    except (ConnectionLost, TooLarge) as error:
                        self._lose(client)
                        if isinstance(error, ConnectionLost):
                            raise
                        # Said of the connection, not of a request: on one of its own the guilty one is found.
                        on_its_own = True
                        continue
            except GranvilleError as error:
                pause_s = patience.pause_after(error, trio.current_time(), sent_at=sent_at)
                if pause_s is None:
                    raise
                if not has_told and patience.away_for(trio.current_time()) >= TOLD_AFTER_S:
                    has_told = True
                    on_wait(error.message)
                log.info("request waits id=%s for_s=%.2f reason=%s", request.id, pause_s, error.error)
                await trio.sleep(pause_s)

    async def client(self) -> Client:
        """The connection that all share. Raises what `connect` raises."""
        if self._client is not None:
            return self._client
        attempt = self._attempt
        self._wanted.set()
        await attempt.done.wait()
        if attempt.error is not None:
            raise attempt.error
        assert attempt.client is not None
        return attempt.client

    async def _send(
        self, client: Client, request: Request, reached: Callable[[], None], on_delta: Callable[[str], None]
    ) -> Result:
        async with client.start(request) as answer:
            try:
                await answer.accepted()
                reached()
                async for text in answer:
                    on_delta(text)
                return answer.result
            except NoModel as error:
                await self._check_is_served(client, request, error)
                raise

    async def _check_is_served(self, client: Client, request: Request, error: NoModel) -> None:
        """Raises NotServed for a type of model that the daemon does not have, not even on its way back."""
        models = await client.models()
        if any(model["type"] == request.model_type for model in models):
            return
        served = ", ".join(sorted({f"{model['type']} ({model['id']})" for model in models})) or "nothing"
        raise NotServed(
            f"no model of type {request.model_type} is served at {self.address}; it serves {served}. Start one with "
            f"`granville serve --models {request.model_type}:MODEL,…`"
        ) from error

    def _lose(self, client: Client) -> None:
        """Have it made again, by whoever wants it next."""
        if self._client is client:
            self._client, self._attempt = None, _Attempt()
            self._broken.set()


def timeout_ms(longest_s: float) -> int:
    """For a request whose caller's cancel scopes end it sooner or later, in `longest_s` at the latest: a little more
    than is left of their time, so that it is they who say why it ended."""
    left_s = max(0.0, trio.current_effective_deadline() - trio.current_time())
    return int(1000 * min(left_s + DEADLINE_MARGIN_S, longest_s))


def ignore(_: Any) -> None:
    """A delta that nobody follows."""
