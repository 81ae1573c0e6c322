"""HTTP beside the kernel: nothing that a client does there ends the daemon, or keeps it from ending. On the real clock,
for real sockets."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from granville.config import ServeConfig
from granville.doors import web
from granville.hosting.interface import ModelSpec
from granville.http.app import make_app
from granville.nursery.kernel import Serving, run_kernel
from granville.nursery.pool import ModelPlan
from granville.scheduling.roster import ModelEntry
from granville.testing.fake import FakeDriver, FakePlan, TrioStepper

GET = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
WEBSOCKET = (
    b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n"
)


@asynccontextmanager
async def daemon(folder: Path) -> AsyncIterator[tuple[Serving, int]]:
    """A kernel with its doors, and its HTTP port."""
    load = partial(FakeDriver(FakePlan(), sleeps=False).load, ModelSpec(Path("fake.gguf")))
    plan = ModelPlan(ModelEntry("fake-0", "inference", "fake.gguf", "fake"), partial(TrioStepper, load))
    config = ServeConfig(socket=str(folder / "g.sock"), http_port=0)
    async with trio.open_nursery() as nursery:  # the daemon beside its client
        serving: Serving = await nursery.start(run_kernel, config, [plan], make_app)
        assert serving.http_port is not None
        yield serving, serving.http_port
        serving.desk.stop()


async def status_line(port: int) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(GET)
        return bytes(await stream.receive_some(12))


@pytest.mark.real_time
async def test_what_hypercorn_does_not_expect_costs_one_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(20):
        async with daemon(tmp_path) as (_, port):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(WEBSOCKET * 2 + b"\x82\x05hello")
                while await stream.receive_some(65536):
                    pass
            assert await status_line(port) == b"HTTP/1.1 200"
    assert "an HTTP connection failed" in caplog.text


@pytest.mark.real_time
async def test_a_client_that_does_not_read_cannot_keep_the_daemon_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "SEND_STALL_S", 0.5)
    with trio.fail_after(20):
        async with daemon(tmp_path) as (serving, port):
            deaf = trio.socket.socket()
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await deaf.connect(("127.0.0.1", port))
            with trio.move_on_after(3):
                while await deaf.send(GET.replace(b"health", b"status") * 200):
                    pass
            serving.desk.stop()
            await serving.ended.wait()
            deaf.close()


async def test_what_is_sent_while_the_connection_is_closed_finds_it_broken() -> None:
    """hypercorn sends the end of a stream from the task that reads, and takes a broken stream for a client's end."""
    ours, theirs = trio.socket.socketpair()
    with theirs:
        async with trio.SocketStream(ours) as inner, trio.open_nursery() as nursery:  # a task that is in its way
            with trio.move_on_after(0.05):
                await inner.send_all(bytes(16 << 20))  # nobody reads: no more room
            nursery.start_soon(inner.wait_send_all_might_not_block)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BrokenResourceError, match="being closed"):
                await web._BoundedStream(inner).send_all(b"more")
            nursery.cancel_scope.cancel()
