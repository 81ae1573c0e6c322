"""One connection to the daemon, shared by any number of requests in flight."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from granville.client.address import DEFAULT_ADDRESS, dial, new_id
from granville.client.answer import Answer, Answers
from granville.client.callback import Mailbox
from granville.client.link import Link, attended
from granville.errors import GranvilleError
from granville.wire.messages import (
    ChatMessage,
    Class,
    Control,
    ControlReply,
    ErrorReply,
    ModelType,
    Request,
    Result,
    encode,
    parse_reply,
)
from granville.wire.speech import Heard

log = logging.getLogger(__name__)

GIVE_UP_S = 1.0
"""How long leaving an answer early waits for the daemon to have cancelled its job."""
CALLBACK_GRACE_S = 5.0
"""How long a result may still come to a callback after its daemon has closed the connection: shutting down,
it delivers last."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said, and when: `heard.segments`."""

    text: str
    heard: Heard


class Client(Link):
    """Made by `connect`. Its methods may be called from many tasks at once; each raises the GranvilleError
    that the daemon answered with, or ConnectionLost."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream)
        self._answers = Answers()

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

    async def transcribe(
        self,
        audio: bytes | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        language: str | None = None,
        words: bool = False,
        model_id: str | None = None,
    ) -> Transcript:
        """What is said in a recording: a file's contents, or, over the Unix socket, the path of one that is yours."""
        whole = None if path is None else os.path.abspath(path)  # noqa: ASYNC240 - asks for nothing but our own folder
        request = Request(
            id=new_id(),
            model_type="stt",
            audio=audio,
            audio_path=whole,
            language=language,
            words=words,
            model_id=model_id,
        )
        result = await self.submit(request)
        return Transcript(result.text, msgspec.convert(result.output, Heard))

    async def speak(
        self, text: str, *, voice: str | None = None, speed: float | None = None, model_id: str | None = None
    ) -> bytes:
        """A text read aloud, as a WAV file. For sound while it is made `stream` a Request of model_type tts, and
        iterate the answer's `sound()`."""
        request = Request(id=new_id(), model_type="tts", text=text, voice=voice, speed=speed, model_id=model_id)
        return bytes((await self.submit(request)).output)

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
            await self.send(encode(request))
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

    async def warm(
        self,
        *,
        ttl_ms: int,
        session_id: str | None = None,
        messages: Sequence[ChatMessage] | None = None,
        model_id: str | None = None,
        model_type: ModelType = "inference",
        tools: Sequence[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        priority: Class | None = None,
        wait: bool = False,
    ) -> dict[str, Any]:
        """Have a session, or what `messages` begin a prompt with, read before a request needs it, and kept for
        `ttl_ms`. Returns at once (`model_id`, `state`: warming, or cold where there is nothing to keep), or with `wait`
        when it is done (warm or cold, `prompt_tokens`, `cached_tokens`). Raises Unsupported where a driver cannot."""
        control = Control(
            op="warm", ttl_ms=ttl_ms, session_id=session_id, messages=None if messages is None else list(messages),
            model_id=model_id, model_type=model_type, tools=None if tools is None else list(tools),
            tool_choice=tool_choice, priority=priority, wait=wait,
        )  # fmt: skip
        return await self._ask(control)

    async def ping(self) -> str:
        """The daemon's version."""
        return str((await self._ask(Control(op="ping")))["version"])

    async def drain(self) -> dict[str, Any]:
        """Let the daemon finish what it has accepted, and take nothing more."""
        return await self._ask(Control(op="drain"))

    async def _ask(self, control: Control) -> dict[str, Any]:
        return await self.ask(msgspec.to_builtins(control))

    async def _give_up(self, id: str) -> None:
        with trio.move_on_after(GIVE_UP_S, shield=True):
            try:
                await self.cancel(id)
            except GranvilleError as error:
                # The job has just ended, or nobody is there who runs it.
                log.debug("nothing to cancel id=%s reason=%r", id, error)

    def dispatch(self, value: object) -> None:
        message = parse_reply(value)
        if isinstance(message, ControlReply):
            self.settle(message.fields.pop("rid", 0), message.fields)
        elif not (isinstance(message, ErrorReply) and self.settle_error(message)):
            self._answers.dispatch(message)

    def drop(self, lost: GranvilleError) -> None:
        for answer in self._answers:
            if not (answer.by_callback and answer.is_accepted):
                answer.fail(lost)

    async def wind_up(self, lost: GranvilleError) -> None:
        await trio.sleep(CALLBACK_GRACE_S)
        for answer in self._answers:
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
    async with attended(Client(stream)) as client:
        yield client
