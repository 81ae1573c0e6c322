"""How an MCP server is reached: by the pipes of a process of ours, or by HTTP. The former is in place of the SDK's own,
which keeps a line of any length and lets the server write to the terminal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which

import anyio
import httpx2
import trio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client._transport import TransportStreams
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCResponse, jsonrpc_message_adapter

from granville.client.background import Background
from granville.crucible.tools.interface import ToolFailed
from granville.crucible.tools.process import environment, process_group

MAX_MESSAGE_BYTES = 8 << 20
MAX_UNASKED = 10_000
"""Messages in a row that answer nothing."""
KEPT_WORDS_CHARS = 300
CHUNK_BYTES = 65536
GRACE_S = 1.0
"""To end by itself once its stdin is closed; then again after SIGTERM."""
HTTP_S = 30.0
"""For a connection; what an answer may take is the call's own."""

ToSession = MemoryObjectSendStream[SessionMessage | Exception]
FromSession = MemoryObjectReceiveStream[SessionMessage]


@dataclass(slots=True)
class Words:
    """What a server has said beside its answers."""

    failure: str | None = None
    """Why it was given up, or how it ended."""
    tail: bytearray = field(default_factory=bytearray)
    """Of stderr."""

    @property
    def last(self) -> str:
        lines = self.tail.decode(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "")
        return " ".join(said.split())[-KEPT_WORDS_CHARS:]

    def add(self, chunk: bytes) -> None:
        self.tail += chunk
        del self.tail[: -4 * KEPT_WORDS_CHARS]


@asynccontextmanager
async def over_pipes(
    command: Sequence[str], env: Mapping[str, str], folder: Path, words: Words
) -> AsyncIterator[TransportStreams]:
    """A process in a group of its own for the length of the body. Raises ToolFailed when it cannot be started."""
    executable = which(command[0])
    if executable is None and "/" in command[0]:
        executable = str(folder / command[0])
    if executable is None:
        raise ToolFailed(f"there is no command {command[0]!r} on the PATH")
    started = process_group([executable, *command[1:]], folder=folder, env=environment(env), grace_s=GRACE_S)
    async with started as process, Background() as nursery:
        to_session, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        to_server, from_session = anyio.create_memory_object_stream[SessionMessage](0)
        nursery.start_soon(_listen, process, to_session, words)
        nursery.start_soon(_speak, process, from_session)
        nursery.start_soon(_overhear, process, words)
        async with from_server, to_server:
            yield from_server, to_server


async def _listen(process: trio.Process, to_session: ToSession, words: Words) -> None:
    """Started by: `over_pipes`. Ends when: the server has closed its stdout, or said more than it may; then the session
    ends too. Cancelled by: the end of the body."""
    assert process.stdout is not None
    buffer = bytearray()
    unasked = 0
    async with to_session:
        while True:
            try:
                chunk = await process.stdout.receive_some(CHUNK_BYTES)
            except trio.BrokenResourceError:
                chunk = b""
            if not chunk:
                words.failure = await _how_it_ended(process)
                return
            *lines, rest = chunk.split(b"\n")
            for line in lines:
                message = _message(bytes(buffer + line))
                buffer.clear()
                unasked = 0 if _is_answer(message) else unasked + 1
                if unasked > MAX_UNASKED:
                    words.failure = f"over {MAX_UNASKED} messages in a row that answer nothing"
                    return
                try:
                    await to_session.send(message)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    return
            buffer += rest
            if len(buffer) > MAX_MESSAGE_BYTES:
                words.failure = f"a message of over {MAX_MESSAGE_BYTES} bytes"
                return


async def _how_it_ended(process: trio.Process) -> str:
    with trio.move_on_after(GRACE_S):
        return f"it has ended (exit status {await process.wait()})"
    return "it has closed its stdout"


async def _speak(process: trio.Process, from_session: FromSession) -> None:
    """Started by: `over_pipes`. Ends when: the session or the server's stdin is closed. Cancelled by: the end of the
    body."""
    assert process.stdin is not None
    async with from_session:
        async for message in from_session:
            text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
            try:
                await process.stdin.send_all(text.encode(errors="replace") + b"\n")
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return


async def _overhear(process: trio.Process, words: Words) -> None:
    """Started by: `over_pipes`. Ends when: the server has closed its stderr. Cancelled by: the end of the body."""
    assert process.stderr is not None
    async for chunk in process.stderr:
        words.add(bytes(chunk))


def _message(line: bytes) -> SessionMessage | Exception:
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError as error:
        return error


def _is_answer(message: SessionMessage | Exception) -> bool:
    return isinstance(message, SessionMessage) and isinstance(message.message, JSONRPCResponse | JSONRPCError)


@asynccontextmanager
async def over_http(url: str) -> AsyncIterator[TransportStreams]:
    """A server that somebody else runs. Of the environment here neither proxies nor passwords are used."""
    timeout = httpx2.Timeout(HTTP_S, read=None)
    transport = _Bounded(httpx2.AsyncHTTPTransport(trust_env=False))
    async with (
        httpx2.AsyncClient(timeout=timeout, trust_env=False, transport=transport) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=MAX_MESSAGE_BYTES) as streams,
    ):
        yield streams


class _Bounded(httpx2.AsyncBaseTransport):
    """Answers that are no stream of events end at MAX_MESSAGE_BYTES, as those of a stream do."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _Counted(response.stream)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Counted(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._inner:
            size += len(chunk)
            if size > MAX_MESSAGE_BYTES:
                raise httpx2.ReadError(f"an answer of over {MAX_MESSAGE_BYTES} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
