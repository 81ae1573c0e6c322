"""A callback socket of one's own: results come here, whatever becomes of the connection that asked."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from pathlib import Path

import trio

from granville.client.answer import Answer, Answers
from granville.client.background import Background
from granville.errors import GranvilleError, StartupError
from granville.wire.framing import MAX_REPLY_BYTES, FrameReader
from granville.wire.messages import Ack, ControlReply, parse_reply

log = logging.getLogger(__name__)

BACKLOG = 128


class Mailbox:
    """What arrives at a callback socket, by job id. `address` is the `callback` of requests meant for it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._answers = Answers()

    def expect(self, answer: Answer) -> AbstractContextManager[None]:
        """Route a job's messages to its answer while the body runs."""
        return self._answers.expect(answer)

    async def _receive(self, stream: trio.SocketStream) -> None:
        """One connection from the daemon: a job's messages.

        Started by: the listener. Ends when: the daemon closes, or sends what is no message.
        Cancelled by: the end of `listen_for_results`.
        """
        frames = FrameReader(max_message_bytes=MAX_REPLY_BYTES)
        try:
            async for data in stream:
                for value in frames.feed(data):
                    message = parse_reply(value)
                    if not isinstance(message, ControlReply | Ack):
                        self._answers.dispatch(message)
        except (trio.BrokenResourceError, GranvilleError) as error:
            log.warning("callback connection ended reason=%r", error)


@asynccontextmanager
async def listen_for_results(path: str | Path | None = None) -> AsyncIterator[Mailbox]:
    """Bind a Unix socket, mode 0600, for the length of the body; without a path in a private directory.

    Raises StartupError when it cannot be bound.
    """
    with ExitStack() as cleanup:
        if path is None:
            directory = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="granville-"))
            path = Path(directory, "callback.sock")
        listener = _bind(Path(path))
        cleanup.callback(Path(path).unlink, missing_ok=True)
        mailbox = Mailbox(os.fspath(path))
        async with Background() as nursery:
            await nursery.start(trio.serve_listeners, mailbox._receive, [listener])
            yield mailbox


def _bind(path: Path) -> trio.SocketListener:
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listening.bind(os.fspath(path))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise StartupError(f"{path}: cannot listen for results there: {error.strerror or error}") from error
    finally:
        os.umask(before)
    return trio.SocketListener(trio.socket.from_stdlib_socket(listening))
