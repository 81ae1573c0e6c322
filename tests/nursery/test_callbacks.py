"""Deliveries to callbacks that are late, slow, gone or many. Real Unix sockets, in Trio's time."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from granville.doors.transport import HttpxTransport
from granville.testing.kernel import request, running_kernel
from granville.wire.framing import FrameReader


@asynccontextmanager
async def callback_socket(path: Path) -> AsyncIterator[trio.SocketListener]:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))  # Trio's own bind goes through a thread, and the clock would jump on meanwhile
    sock.listen(16)
    async with trio.SocketListener(trio.socket.from_stdlib_socket(sock)) as listener:
        yield listener
    os.unlink(path)


async def everything(listener: trio.SocketListener) -> list[dict[str, Any]]:
    """All that one connection to the callback brings, to its end."""
    reader, messages = FrameReader(), []
    async with await listener.accept() as stream:
        while data := await stream.receive_some(65536):
            for value in reader.feed(data):
                assert isinstance(value, dict)
                messages.append(value)
    return messages


async def test_a_result_goes_to_its_callback(tmp_path: Path) -> None:
    async with running_kernel(decode_s=1.0) as k, callback_socket(tmp_path / "cb") as callback:
        client = k.connect()
        assert await client.ask(request("a", callback=str(tmp_path / "cb"))) == {"id": "a", "status": "accepted"}
        await client.stream.aclose()  # a job with a callback does not need its connection
        (result,) = await everything(callback)
        assert (result["id"], result["tool_input_json"]) == ("a", '["one two three"]')


async def test_a_stream_is_one_connection(tmp_path: Path) -> None:
    async with running_kernel(decode_s=1.0) as k, callback_socket(tmp_path / "cb") as callback:
        await k.connect().ask(request("a", callback=str(tmp_path / "cb"), stream=True))
        *deltas, result = await everything(callback)
        assert "".join(d["delta"] for d in deltas) == "one two three"
        assert len(deltas) == 3
        assert result["finish_reason"] == "stop"


async def test_an_error_after_the_ack_goes_to_the_callback(tmp_path: Path) -> None:
    async with running_kernel(decode_s=1.0) as k, callback_socket(tmp_path / "cb") as callback:
        await k.connect().ask(request("a", callback=str(tmp_path / "cb"), timeout_ms=1500))
        (error,) = await everything(callback)
        assert (error["id"], error["error"], error["code"]) == ("a", "deadline_exceeded", 408)


async def test_a_callback_that_listens_later_gets_its_result(tmp_path: Path) -> None:
    async with running_kernel(decode_s=1.0) as k:
        await k.connect().ask(request("a", callback=str(tmp_path / "cb")))
        await trio.sleep(20)
        async with callback_socket(tmp_path / "cb") as callback:
            (result,) = await everything(callback)
        assert result["id"] == "a"


async def test_a_callback_that_never_comes_is_given_up_and_counted(tmp_path: Path) -> None:
    async with running_kernel(decode_s=1.0, delivery_ttl_s=60) as k:
        client = k.connect()
        await client.ask(request("a", callback=str(tmp_path / "nobody")))
        await trio.sleep(30)
        assert (await client.ask({"op": "status", "id": "a"}))["state"] == "delivering"
        await trio.sleep(40)
        assert (await client.ask({"op": "status", "id": "a"}))["code"] == 404
        assert k.desk.counters.undelivered == 1


async def test_a_callback_that_does_not_read_holds_up_nobody_else(tmp_path: Path) -> None:
    long = "word " * 200_000
    settings: dict[str, Any] = {"context_size": 10**6, "max_request_bytes": 2 << 20, "slots": 4}
    async with running_kernel(**settings) as k, callback_socket(tmp_path / "cb") as callback:
        client = k.connect()
        async with callback_socket(tmp_path / "deaf"):
            for n in range(3):
                await client.ask(request(str(n), long, max_tokens=10**6, callback=str(tmp_path / "deaf")))
            began = trio.current_time()
            await client.ask(request("a", callback=str(tmp_path / "cb")))
            (result,) = await everything(callback)
            assert result["id"] == "a"
            assert trio.current_time() - began < 1
            assert k.desk.counters.senders == 1  # one message at a time is under way to the deaf one
            await trio.sleep(100)
        assert k.desk.counters.undelivered == 3


async def test_a_repeated_request_is_delivered_to_the_newest_callback(tmp_path: Path) -> None:
    async with running_kernel(decode_s=1.0) as k, callback_socket(tmp_path / "new") as callback:
        client = k.connect()
        await client.ask(request("a", callback=str(tmp_path / "never"), stream=True))
        await trio.sleep(1.5)
        assert (await client.ask(request("a", callback=str(tmp_path / "new"), stream=True)))["status"] == "accepted"
        *deltas, result = await everything(callback)
        assert "".join(d["delta"] for d in deltas) == "one two three"
        assert result["id"] == "a"
        assert (k.desk.counters.delivered, k.desk.counters.undelivered) == (1, 0)


async def test_a_result_on_its_way_to_a_dead_callback_follows_the_client(tmp_path: Path) -> None:
    async with running_kernel(decode_s=1.0) as k:
        client = k.connect()
        await client.ask(request("a", callback=str(tmp_path / "never")))
        await trio.sleep(10)
        assert (await client.ask(request("a")))["status"] == "accepted"
        assert (await client.receive())["tool_input_json"] == '["one two three"]'


@pytest.mark.parametrize("stream", [False, True])
async def test_senders_are_bounded(tmp_path: Path, stream: bool) -> None:
    async with running_kernel(decode_s=1.0, slots=4, max_senders=1) as k, callback_socket(tmp_path / "cb") as callback:
        client = k.connect()
        for n in range(4):
            await client.ask(request(str(n), callback=str(tmp_path / "cb"), stream=stream))
        ids = {(await everything(callback))[-1]["id"] for _ in range(4)}
        assert ids == set("0123")
        assert k.desk.counters.delivered == 4


async def test_a_url_that_no_transport_takes_is_refused() -> None:
    async with running_kernel() as k:
        reply = await k.connect().ask(request("a", callback="http://127.0.0.1:8000/\x01"))
        assert (reply["id"], reply["error"], reply["code"]) == ("a", "bad_request", 400)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_transport_that_fails_in_its_own_way_costs_one_message(
    stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def post(self: HttpxTransport, url: str, body: bytes, timeout_s: float) -> int:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(HttpxTransport, "post", post)
    async with running_kernel(decode_s=1.0) as k:
        client = k.connect()
        await client.ask(request("a", callback="http://127.0.0.1:9/", stream=stream))
        await trio.sleep(100)
        assert k.desk.counters.undelivered == 1
        assert len(k.desk.admission) == 0
        assert (await client.ask({"op": "ping"}))["ok"] is True
    assert "nobody thought of this" in caplog.text


async def http_callback(head: bytes, body: bytes, sent: list[int]) -> int:
    """The status that the transport makes of a server's answer; `body` is sent for ever."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(head)
            while body:
                await stream.send_all(body)
                sent.append(len(body))

    async with trio.open_nursery() as nursery:  # the server beside the transport
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        status = await HttpxTransport().post(f"http://127.0.0.1:{port}/", b"x", 10)
        nursery.cancel_scope.cancel()
    return status


@pytest.mark.real_time
@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n"],
    ids=["endless", "badly encoded"],
)
async def test_the_body_of_an_http_callbacks_answer_is_not_read(head: bytes) -> None:
    sent: list[int] = []
    with trio.fail_after(5):
        assert await http_callback(head, b"x" * 65536, sent) == 200
    assert sum(sent) < 64 << 20


async def test_a_slow_callback_of_a_repeated_request_loses_the_job(tmp_path: Path) -> None:
    text = " ".join(["x" * 3000] * 300)
    settings: dict[str, Any] = {"context_size": 10**6, "max_outbox_bytes": 500_000}
    async with running_kernel(decode_s=0.01, **settings) as k, callback_socket(tmp_path / "deaf"):
        client = k.connect()
        await client.ask(request("a", text, stream=True, max_tokens=1000, callback=str(tmp_path / "never")))
        await client.ask(request("a", text, stream=True, max_tokens=1000, callback=str(tmp_path / "deaf")))
        await trio.sleep(5)
        assert (k.desk.counters.cancelled, k.desk.counters.failed) == (1, 0)


async def test_a_callback_that_is_no_longer_the_newest_is_hung_up_on(tmp_path: Path) -> None:
    async with running_kernel(decode_s=10.0) as k, callback_socket(tmp_path / "old") as old:
        client = k.connect()
        await client.ask(request("a", callback=str(tmp_path / "old"), stream=True))
        with trio.fail_after(15):
            messages = []
            async with trio.open_nursery() as nursery:  # the old callback's reader beside the client

                async def read() -> None:
                    messages.extend(await everything(old))

                nursery.start_soon(read)
                await trio.sleep(12)
                await client.ask(request("a", stream=True))
        assert messages == [{"id": "a", "delta": "one"}]
        assert (await client.receive())["delta"] == "one"
