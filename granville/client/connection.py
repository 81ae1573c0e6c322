"""One connection to the daemon, shared by any number of requests in flight."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio
from msgspec import UNSET

from granville.client.address import DEFAULT_ADDRESS, dial, new_id
from granville.client.answer import Answer, Answers
from granville.client.background import Background
from granville.client.callback import MAX_REPLY_BYTES, Mailbox
from granville.errors import ConnectionLost, GranvilleError
from granville.wire.framing import FrameReader
from granville.wire.messages import Control, ControlReply, ErrorReply, Request, Result, encode, parse_reply

log = logging.getLogger(__name__)

OUTBOX_MESSAGES = 64
"""Messages that wait for the socket; the next sender waits too."""
GIVE_UP_S = 1.0
"""How long leaving an answer early waits for the daemon to have cancelled its job."""
CALLBACK_GRACE_S = 5.0
"""How long a result may still come to a callback after its daemon has closed the connection: shutting down,
it delivers last."""


@dataclass(slots=True)
class _Question:
    """A control operation under way."""

    done: trio.Event = field(default_factory=trio.Event)
    reply: dict[str, Any] | GranvilleError | None = None

    def settle(self, reply: dict[str, Any] | GranvilleError) -> None:
        self.reply = reply
        self.done.set()


class Client:
    """Made by `connect`. Its methods may be called from many tasks at once; each raises the GranvilleError
    that the daemon answered with, or ConnectionLost."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._outbox, self._unsent = trio.open_memory_channel[bytes](OUTBOX_MESSAGES)
        self._answers = Answers()
        self._questions: dict[str | int, _Question] = {}
        self._rids = itertools.count(1)
        self._lost: GranvilleError | None = None

    async def submit(self, request: Request) -> Result:
        """Ask, and wait for the result. Cancelled, it cancels the job at the daemon."""
        async with self.start(request) as answer:
            return await answer.finish()

    def stream(self, request: Request) -> AbstractAsyncContextManager[Answer]:
        """Ask for the text as it is made: `async for text in answer`, then `answer.result`."""
        return self.start(msgspec.structs.replace(request, stream=True))

    async def embed(self, texts: Sequence[str], *, model_id: str | None = None) -> list[list[float]]:
        """A vector for each text, of length 1: a product of two is the cosine of the angle between them."""
        request = Request(id=new_id(), model_type="embedding", documents=list(texts), model_id=model_id)
        return list((await self.submit(request)).output)

    async def rerank(self, query: str, documents: Sequence[str], *, model_id: str | None = None) -> list[float]:
        """A score for each document: the higher, the better it answers the query."""
        request = Request(id=new_id(), model_type="rerank", text=query, documents=list(documents), model_id=model_id)
        return list((await self.submit(request)).output)

    @asynccontextmanager
    async def start(self, request: Request, mailbox: Mailbox | None = None) -> AsyncIterator[Answer]:
        """Send a request; its answer comes here, or by way of a mailbox. Leaving the body before the answer
        has ended cancels the job at the daemon. Raises Conflict for an id that waits here already."""
        answer = Answer(request.id, by_callback=mailbox is not None)
        with ExitStack() as routes:
            routes.enter_context(self._answers.expect(answer))
            if mailbox is not None:
                request = msgspec.structs.replace(request, callback=mailbox.address)
                routes.enter_context(mailbox.expect(answer))
            await self._send(encode(request))
            try:
                yield answer
            finally:
                if answer.is_live:
                    await self._give_up(request.id)

    async def cancel(self, id: str) -> str:
        """End a job. Its state then: `cancelled`, or `finished` when it had ended. Raises UnknownJob."""
        return str((await self._ask(Control(op="cancel", id=id)))["state"])

    async def status(self, id: str | None = None) -> dict[str, Any]:
        """The daemon's state; or a job's (`id`, `state`, `position`, `eta_ms`). Raises UnknownJob."""
        return await self._ask(Control(op="status", id=id))

    async def models(self) -> list[dict[str, Any]]:
        """The loaded models: `id`, `type`, `path`, `busy`, ..."""
        return list((await self._ask(Control(op="models")))["models"])

    async def load(self, model: str, *, slots: int | None = None, context_size: int | None = None) -> dict[str, Any]:
        """Have a model loaded, `[type:][id:]path[?driver=NAME]`; returns when it is ready, with its listing. One that
        is there already is not loaded again. Raises BadRequest, Unsupported (no memory for it), Conflict (the id is
        another model's) or DriverFailed."""
        return dict((await self._ask(Control(op="load", model=model, slots=slots, context_size=context_size)))["model"])

    async def unload(self, model_id: str, *, force: bool = False) -> None:
        """Have a model unloaded; returns when it is gone. What runs on it ends first, or, with `force`, ends now with
        NoModel. Raises UnknownModel."""
        await self._ask(Control(op="unload", model_id=model_id, force=force))

    async def ping(self) -> str:
        """The daemon's version."""
        return str((await self._ask(Control(op="ping")))["version"])

    async def drain(self) -> dict[str, Any]:
        """Let the daemon finish what it has accepted, and take nothing more."""
        return await self._ask(Control(op="drain"))

    async def _ask(self, control: Control) -> dict[str, Any]:
        rid = next(self._rids)
        question = self._questions[rid] = _Question()
        try:
            await self._send(encode(msgspec.structs.replace(control, rid=rid)))
            await question.done.wait()
        finally:
            del self._questions[rid]
        if isinstance(question.reply, GranvilleError):
            raise question.reply
        assert question.reply is not None
        return question.reply

    async def _give_up(self, id: str) -> None:
        with trio.move_on_after(GIVE_UP_S, shield=True):
            try:
                await self.cancel(id)
            except GranvilleError as error:
                # The job has just ended, or nobody is there who runs it.
                log.debug("nothing to cancel id=%s reason=%r", id, error)

    async def _send(self, message: bytes) -> None:
        try:
            if self._lost is not None:
                raise self._lost
            await self._outbox.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._lost or ConnectionLost("the daemon closed the connection") from None

    async def _write(self) -> None:
        """Everything that is sent, one whole message after another: a cancelled sender cannot cut one.

        Started by: `connect`. Ends when: the connection breaks, of which the reader tells.
        Cancelled by: the end of `connect`'s body.
        """
        with self._unsent:
            async for message in self._unsent:
                try:
                    await self._stream.send_all(message)
                except trio.BrokenResourceError:
                    return

    async def _read(self) -> None:
        """Everything that is received, given to whoever waits for it.

        Started by: `connect`. Ends when: the daemon closes, or sends what is no message.
        Cancelled by: the end of `connect`'s body.
        """
        lost: GranvilleError = ConnectionLost("this client has been closed")
        frames = FrameReader(max_message_bytes=MAX_REPLY_BYTES)
        try:
            async for data in self._stream:
                for value in frames.feed(data):
                    self._dispatch(value)
            frames.close()
            lost = ConnectionLost("the daemon closed the connection before it had answered")
        except trio.BrokenResourceError as error:
            lost = ConnectionLost(f"the connection to the daemon broke: {error.__cause__ or error}")
        except GranvilleError as error:
            lost = error
        finally:
            self._lose(lost)
        await trio.sleep(CALLBACK_GRACE_S)
        for answer in self._answers:
            answer.fail(lost)

    def _dispatch(self, value: object) -> None:
        message = parse_reply(value)
        if isinstance(message, ControlReply):
            question = self._questions.get(message.fields.pop("rid", 0))
            if question is not None:
                question.settle(message.fields)
        elif isinstance(message, ErrorReply) and message.rid is not UNSET:
            question = self._questions.get(message.rid)
            if question is not None:
                question.settle(message.exception())
        elif message.id is None:
            # Said of the connection as a whole, and the last word on it: the daemon reads no further.
            raise message.exception()
        else:
            self._answers.dispatch(message)

    def _lose(self, lost: GranvilleError) -> None:
        """Nothing more will come here: tell everyone who waits for it."""
        self._lost = lost
        self._outbox.close()
        for question in self._questions.values():
            question.settle(lost)
        for answer in self._answers:
            if not (answer.by_callback and answer.is_accepted):
                answer.fail(lost)


@asynccontextmanager
async def connect(address: str = DEFAULT_ADDRESS) -> AsyncIterator[Client]:
    """A connection to the daemon at a Unix socket's path or `tcp://host:port`, for the length of the body.

    Raises NoDaemon when nothing listens there.
    """
    stream = await dial(address)
    async with serve_client(stream) as client:
        yield client


@asynccontextmanager
async def serve_client(stream: trio.abc.Stream) -> AsyncIterator[Client]:
    """A client on any stream, a memory stream in a test for one; the stream is closed at the end."""
    client = Client(stream)
    async with stream, Background() as nursery:
        nursery.start_soon(client._read)
        nursery.start_soon(client._write)
        yield client
