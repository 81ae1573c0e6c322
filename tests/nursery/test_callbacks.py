"""Deliveries to callbacks that are late, slow, gone or many. Real Unix sockets, in Trio's time."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from granville.testing.kernel import request, running_kernel
from granville.wire.framing import FrameReader


@asynccontextmanager
async def callback_socket(path: Path) -> AsyncIterator[trio.SocketListener]:
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen(16)
    async with trio.SocketListener(sock) as listener:
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
