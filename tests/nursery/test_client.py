"""The client against a scripted daemon: whatever order the replies come in, each reaches the one who waits for it."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from granville.client import Client, Request, answer, connect, listen_for_results
from granville.client.address import DEFAULT_ADDRESS
from granville.client.connection import CALLBACK_GRACE_S, GIVE_UP_S, serve_client
from granville.config import DEFAULT_SOCKET
from granville.errors import (
    BadRequest,
    Cancelled,
    Conflict,
    ConnectionLost,
    DriverFailed,
    FramingLost,
    NoDaemon,
    QueueFull,
    StartupError,
    TooLarge,
    UnknownJob,
)
from granville.wire.framing import FrameReader

Map = dict[str, Any]


def ack(id: str) -> Map:
    return {"id": id, "status": "accepted"}


def result(id: str, text: str = "fine") -> Map:
    return {
        "id": id,
        "model_id": "llama-a1b2c3",
        "tool_id": "__chat__",
        "tool_input_json": msgspec.json.encode([text]).decode(),
        "priority": "normal",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 1},
    }


def error(id: str | None, name: str, code: int, message: str = "", **more: object) -> Map:
    return {"id": id, "error": name, "code": code, "message": message, **more}


class Daemon:
    """The other end of the connection, played by the test."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._frames = FrameReader()
        self._received: list[Any] = []

    async def receive(self) -> Map:
        while not self._received:
            data = await self.stream.receive_some()
            assert data, "the client closed the connection"
            self._received += self._frames.feed(data)
        message: Map = self._received.pop(0)
        return message

    async def send(self, *messages: Map) -> None:
        await self.stream.send_all(b"".join(msgspec.msgpack.encode(message) for message in messages))


@asynccontextmanager
async def client_and_daemon(
    pair: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]] = memory_stream_pair,
) -> AsyncIterator[tuple[Client, Daemon]]:
    here, there = pair()
    with trio.fail_after(60):
        async with serve_client(here) as client:
            yield client, Daemon(there)


def test_default_address_is_the_daemons() -> None:
    assert DEFAULT_ADDRESS == DEFAULT_SOCKET


async def test_submit_sends_the_request_and_returns_its_result() -> None:
    async with client_and_daemon() as (client, daemon), trio.open_nursery() as nursery:

        async def serve() -> None:
            assert await daemon.receive() == {"id": "a", "text": "hi", "priority": "high"}
            await daemon.send(ack("a"), result("a", "hello"))

        nursery.start_soon(serve)
        got = await client.submit(Request(id="a", text="hi", priority="high"))
        assert (got.id, got.text, got.usage.completion_tokens) == ("a", "hello", 1)


async def test_a_refusal_is_raised_with_what_it_advises() -> None:
    async with client_and_daemon() as (client, daemon), trio.open_nursery() as nursery:
        nursery.start_soon(daemon.send, error("a", "queue_full", 429, "1000 wait", retry_after_ms=250))
        with pytest.raises(QueueFull, match="1000 wait") as caught:
            await client.submit(Request(id="a", text="hi"))
        assert caught.value.retry_after_ms == 250


async def test_stream_gives_the_text_as_it_comes_and_then_the_result() -> None:
    async with client_and_daemon() as (client, daemon), client.stream(Request(id="a", text="hi")) as answer:
        assert (await daemon.receive())["stream"] is True
        assert not answer.is_accepted
        await daemon.send(ack("a"))
        await answer.accepted()
        with pytest.raises(RuntimeError, match="has not ended"):
            _ = answer.result
        await daemon.send({"id": "a", "delta": "one"})
        assert await anext(answer) == "one"
        await daemon.send({"id": "a", "delta": " two"}, {"id": "a", "delta": " three"})
        await wait_all_tasks_blocked()
        await daemon.send(result("a", "one two three"))
        assert [text async for text in answer] == [" two three"]  # what waited was joined
        assert answer.result.text == "one two three"


async def test_text_before_a_failure_is_given_before_the_failure() -> None:
    async with client_and_daemon() as (client, daemon), client.stream(Request(id="a", text="hi")) as answer:
        await daemon.send(ack("a"), {"id": "a", "delta": "par"}, error("a", "cancelled", 499, "by cancel"))
        assert await anext(answer) == "par"
        with pytest.raises(Cancelled, match="by cancel"):
            await anext(answer)


async def test_a_refused_request_is_not_accepted() -> None:
    async with client_and_daemon() as (client, daemon), client.start(Request(id="a", text="hi")) as answer:
        await daemon.send(error("a", "bad_request", 400, "text: expected `str`"))
        with pytest.raises(BadRequest, match="expected `str`"):
            await answer.accepted()


async def test_many_requests_are_answered_in_any_order() -> None:
    ids = [f"job-{n}" for n in range(50)]
    got: dict[str, str] = {}
    async with client_and_daemon() as (client, daemon), trio.open_nursery() as nursery:

        async def ask(id: str) -> None:
            got[id] = (await client.submit(Request(id=id, text="hi"))).text

        for id in ids:
            nursery.start_soon(ask, id)
        seen = [(await daemon.receive())["id"] for _ in ids]
        assert sorted(seen) == sorted(ids)
        await daemon.send(*(ack(id) for id in ids), *(result(id, f"for {id}") for id in reversed(ids)))
    assert got == {id: f"for {id}" for id in ids}


async def test_replies_split_anywhere_are_understood() -> None:
    async with client_and_daemon() as (client, daemon), trio.open_nursery() as nursery:

        async def dribble() -> None:
            await daemon.receive()
            for byte in msgspec.msgpack.encode(ack("a")) + msgspec.msgpack.encode(result("a", "späte Antwort")):
                await daemon.stream.send_all(bytes([byte]))
                await wait_all_tasks_blocked()

        nursery.start_soon(dribble)
        assert (await client.submit(Request(id="a", text="hi"))).text == "späte Antwort"


async def test_control_replies_are_matched_by_rid() -> None:
    got: Map = {}
    async with client_and_daemon() as (client, daemon):

        async def ask(name: str, question: Callable[[], Any]) -> None:
            got[name] = await question()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "ping", client.ping)
            nursery.start_soon(ask, "models", client.models)
            nursery.start_soon(ask, "status", client.status)
            nursery.start_soon(ask, "cancel", lambda: client.cancel("a"))
            nursery.start_soon(ask, "drain", client.drain)
            rids = {}
            for _ in range(5):
                message = await daemon.receive()
                rids[message["op"]] = message["rid"]
                if message["op"] == "cancel":
                    assert message["id"] == "a"
            replies: Map = {
                "ping": {"ok": True, "version": "9.9"},
                "models": {"models": [{"id": "m"}]},
                "status": {"state": "serving"},
                "cancel": {"id": "a", "state": "finished"},
                "drain": {"state": "draining"},
            }
            for op in ("cancel", "status", "drain", "ping", "models"):
                await daemon.send({**replies[op], "rid": rids[op]})
    assert got == {
        "ping": "9.9",
        "models": [{"id": "m"}],
        "status": {"state": "serving"},
        "cancel": "finished",
        "drain": {"state": "draining"},
    }


async def test_a_control_error_is_raised_where_it_was_asked() -> None:
    async with client_and_daemon() as (client, daemon), trio.open_nursery() as nursery:

        async def serve() -> None:
            message = await daemon.receive()
            await daemon.send(error("x", "unknown_job", 404, "no job x", rid=message["rid"]))

        nursery.start_soon(serve)
        with pytest.raises(UnknownJob, match="no job x"):
            await client.status("x")


async def test_a_lost_connection_is_raised_in_every_waiter_and_after() -> None:
    lost = 0
    async with client_and_daemon() as (client, daemon):

        async def wait(question: Callable[[], Any]) -> None:
            nonlocal lost
            with pytest.raises(ConnectionLost):
                await question()
            lost += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, client.status)
            nursery.start_soon(wait, lambda: client.submit(Request(id="a", text="hi")))
            nursery.start_soon(wait, lambda: client.submit(Request(id="b", text="hi")))
            for _ in range(3):
                await daemon.receive()
            await daemon.send(ack("a"))
            await wait_all_tasks_blocked()
            await daemon.stream.aclose()
        await wait(client.ping)
        await wait(lambda: client.submit(Request(id="c", text="hi")))
    assert lost == 5


async def test_what_a_daemon_says_of_the_whole_connection_reaches_everyone() -> None:
    async with client_and_daemon() as (client, daemon), trio.open_nursery() as nursery:

        async def serve() -> None:
            await daemon.receive()
            await daemon.send(error(None, "too_large", 413, "a message may have 1048576 bytes"))
            await daemon.stream.aclose()

        nursery.start_soon(serve)
        with pytest.raises(TooLarge, match="1048576"):
            await client.submit(Request(id="a", text="hi"))


async def test_a_daemon_that_speaks_something_else_is_a_clear_error() -> None:
    async with client_and_daemon() as (client, daemon):
        await daemon.stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(FramingLost):
            await client.submit(Request(id="a", text="hi"))


async def test_a_body_raises_as_it_is_and_not_in_a_group() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with client_and_daemon():
            raise KeyError("mine")


async def test_leaving_a_stream_early_cancels_the_job() -> None:
    async with client_and_daemon() as (client, daemon), trio.open_nursery() as nursery:
        ops = []

        async def serve() -> None:
            await daemon.receive()
            await daemon.send(ack("a"), {"id": "a", "delta": "one"})
            message = await daemon.receive()
            ops.append((message["op"], message["id"]))
            await daemon.send(error("a", "cancelled", 499), {"id": "a", "state": "cancelled", "rid": message["rid"]})

        nursery.start_soon(serve)
        async with client.stream(Request(id="a", text="hi")) as answer:
            assert await anext(answer) == "one"
        assert ops == [("cancel", "a")]


async def test_a_cancelled_submit_cancels_the_job_and_leaves_the_connection_usable() -> None:
    async with client_and_daemon() as (client, daemon), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def serve() -> None:
                await daemon.receive()
                await daemon.send(ack("a"))
                scope.cancel()
                message = await daemon.receive()
                assert (message["op"], message["id"]) == ("cancel", "a")
                await daemon.send({"id": "a", "state": "cancelled", "rid": message["rid"]})
                assert (await daemon.receive())["id"] == "b"
                await daemon.send(error("a", "cancelled", 499), result("b"))  # a late word of the first job too

            nursery.start_soon(serve)
            await client.submit(Request(id="a", text="hi"))
        assert scope.cancelled_caught
        assert (await client.submit(Request(id="b", text="hi"))).text == "fine"


async def test_giving_up_waits_for_a_deaf_daemon_only_so_long(autojump_clock: MockClock) -> None:
    async with client_and_daemon() as (client, _):
        began = trio.current_time()
        with trio.move_on_after(10):
            await client.submit(Request(id="a", text="hi"))
        assert trio.current_time() - began == pytest.approx(10 + GIVE_UP_S)


async def test_closing_the_client_ends_what_still_waits() -> None:
    here, _there = memory_stream_pair()
    async with trio.open_nursery() as nursery, serve_client(here) as client:

        async def wait() -> None:
            with pytest.raises(ConnectionLost, match="closed"):
                await client.ping()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()


async def test_a_cancelled_sender_cuts_no_message(autojump_clock: MockClock) -> None:
    async with client_and_daemon(lockstep_stream_pair) as (client, daemon):
        with trio.move_on_after(5):  # nobody receives yet: the request is half sent
            async with client.start(Request(id="a", text="x" * 100_000)):
                await trio.sleep_forever()
        messages = [await daemon.receive() for _ in range(2)]
        assert [message.get("op", "request") for message in messages] == ["request", "cancel"]
        assert len(messages[0]["text"]) == 100_000


async def test_an_id_in_flight_is_a_conflict() -> None:
    async with client_and_daemon() as (client, daemon), client.start(Request(id="a", text="hi")) as answer:
        with pytest.raises(Conflict, match="'a'"):
            await client.submit(Request(id="a", text="another"))
        await daemon.send(ack("a"), result("a"))
        await answer.finish()


async def test_an_unread_answer_is_lost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "MAX_UNREAD_CHARS", 100)
    async with client_and_daemon() as (client, daemon), trio.open_nursery() as nursery:

        async def serve() -> None:
            await daemon.receive()
            await daemon.send(ack("a"), *({"id": "a", "delta": "x" * 10} for _ in range(11)))
            message = await daemon.receive()
            await daemon.send({"id": "a", "state": "cancelled", "rid": message["rid"]})
            await daemon.receive()
            await daemon.send(ack("b"), result("b"))

        nursery.start_soon(serve)
        async with client.stream(Request(id="a", text="hi")) as unread:
            await wait_all_tasks_blocked()
            with pytest.raises(Cancelled, match="not read"):
                await unread.finish()
        assert (await client.submit(Request(id="b", text="hi"))).text == "fine"


async def test_a_reader_that_keeps_up_may_read_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "MAX_UNREAD_CHARS", 100)
    async with client_and_daemon() as (client, daemon), client.stream(Request(id="a", text="hi")) as streamed:
        for _ in range(30):
            await daemon.send({"id": "a", "delta": "x" * 10})
            assert await anext(streamed) == "x" * 10
        await daemon.send(result("a"))
        await streamed.finish()


async def test_bytes_are_not_taken_for_text() -> None:
    """Sound is read as sound, what waits joined; whoever reads text, or nothing, passes over it."""
    for read in ("sound", "text", "nothing"):
        async with client_and_daemon() as (client, daemon), trio.open_nursery() as nursery:

            async def serve(daemon: Daemon = daemon) -> None:
                await daemon.receive()
                await daemon.send(ack("a"), {"id": "a", "delta": b"RI"}, {"id": "a", "delta": b"FF"}, result("a"))

            nursery.start_soon(serve)
            async with client.stream(Request(id="a", text="say it")) as streamed:
                if read == "sound":
                    assert b"".join([piece async for piece in streamed.sound()]) == b"RIFF"
                elif read == "text":
                    assert [piece async for piece in streamed] == []
                assert (await streamed.finish()).id == "a"


async def test_sound_that_fails_says_so_after_what_came() -> None:
    async with client_and_daemon() as (client, daemon), trio.open_nursery() as nursery:

        async def serve() -> None:
            await daemon.receive()
            await daemon.send(ack("a"), {"id": "a", "delta": b"RIFF"})
            await daemon.send({"id": "a", "error": "driver_failed", "code": 502, "message": "no breath"})

        nursery.start_soon(serve)
        heard = b""
        async with client.stream(Request(id="a", text="say it")) as streamed:
            with pytest.raises(DriverFailed, match="no breath"):  # noqa: PT012 - it comes after what is heard
                async for piece in streamed.sound():
                    heard += piece
        assert heard == b"RIFF"


async def test_sound_that_nobody_hears_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("granville.client.answer.MAX_REPLY_BYTES", 10)
    async with client_and_daemon() as (client, daemon), client.stream(Request(id="a", text="say it")) as streamed:
        await daemon.send(ack("a"), {"id": "a", "delta": b"12345678"})
        assert await anext(streamed.sound()) == b"12345678"
        await daemon.send({"id": "a", "delta": b"12345678"}, {"id": "a", "delta": b"12345678"})
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Cancelled, match="not read"):
            await streamed.finish()


async def test_connect_over_a_unix_socket_and_tcp(tmp_path: Path) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        daemon = Daemon(stream)
        message = await daemon.receive()
        await daemon.send({"ok": True, "version": "1.2.3", "rid": message["rid"]})
        assert await stream.receive_some() == b""

    path = str(tmp_path / "d.sock")
    unix = trio.socket.socket(trio.socket.AF_UNIX)
    await unix.bind(path)
    unix.listen()
    (tcp,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = tcp.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(unix), tcp])
        for address in (path, f"tcp://127.0.0.1:{port}"):
            async with connect(address) as client:
                assert await client.ping() == "1.2.3"
        nursery.cancel_scope.cancel()


async def test_no_daemon_says_how_to_start_one(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.sock")
    with pytest.raises(NoDaemon, match=f"no daemon is listening on {missing}.*granville serve smollm2 -s {missing}"):
        async with connect(missing):
            pytest.fail("connected to nothing")
    stale = trio.socket.socket(trio.socket.AF_UNIX)
    await stale.bind(str(tmp_path / "stale.sock"))
    stale.close()
    with pytest.raises(NoDaemon):
        async with connect(str(tmp_path / "stale.sock")):
            pytest.fail("connected to nothing")


@pytest.mark.parametrize(
    "address", ["tcp://", "tcp://host", "tcp://host:", "tcp://:9000", "tcp://h:99999", "tcp://h:x"]
)
async def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(BadRequest, match="tcp://host:port"):
        async with connect(address):
            pytest.fail("connected to nothing")


async def deliver(address: str, *messages: Map) -> None:
    async with await trio.open_unix_socket(address) as stream:
        await Daemon(stream).send(*messages)


async def test_an_answer_by_way_of_a_mailbox() -> None:
    async with client_and_daemon() as (client, daemon), listen_for_results() as mailbox:
        mode = os.stat(mailbox.address).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(mailbox.address)).st_mode) == 0o700
        async with client.start(Request(id="a", text="hi", stream=True), mailbox) as streamed:
            assert (await daemon.receive())["callback"] == mailbox.address
            await daemon.send(ack("a"))
            await streamed.accepted()
            await deliver(
                mailbox.address, {"id": "a", "delta": "hel"}, {"id": "a", "delta": "lo"}, result("a", "hello")
            )
            assert "".join([text async for text in streamed]) == "hello"
            assert streamed.result.text == "hello"
    assert not await trio.Path(mailbox.address).parent.exists()


async def test_a_result_at_the_mailbox_may_overtake_its_ack() -> None:
    async with (
        client_and_daemon() as (client, daemon),
        listen_for_results() as mailbox,
        client.start(Request(id="a", text="hi"), mailbox) as started,
    ):
        await deliver(mailbox.address, result("someone-else"), result("a", "fast"))
        assert (await started.finish()).text == "fast"
        await started.accepted()
        await daemon.send(ack("a"))


async def test_a_mailbox_outlives_what_is_not_a_message() -> None:
    async with (
        client_and_daemon() as (client, _),
        listen_for_results() as mailbox,
        client.start(Request(id="a", text="hi"), mailbox) as started,
    ):
        async with await trio.open_unix_socket(mailbox.address) as stream:
            await stream.send_all(b"\xc1 not MessagePack")
            assert await stream.receive_some() == b""
        await deliver(mailbox.address, result("a"))
        assert (await started.finish()).text == "fine"


async def test_a_result_may_come_to_the_mailbox_after_the_connection_is_gone() -> None:
    async with (
        client_and_daemon() as (client, daemon),
        listen_for_results() as mailbox,
        client.start(Request(id="a", text="hi"), mailbox) as started,
    ):
        await daemon.send(ack("a"))
        await started.accepted()
        await daemon.stream.aclose()
        await wait_all_tasks_blocked()
        assert not started.ended
        await deliver(mailbox.address, result("a"))
        assert (await started.finish()).text == "fine"


async def test_a_mailbox_does_not_wait_for_ever_for_a_daemon_that_died(autojump_clock: MockClock) -> None:
    async with client_and_daemon() as (client, daemon), listen_for_results() as mailbox:
        async with client.start(Request(id="a", text="hi"), mailbox) as started:
            await daemon.send(ack("a"))
            await started.accepted()
            began = trio.current_time()
            await daemon.stream.aclose()
            with pytest.raises(ConnectionLost):
                await started.finish()
        assert trio.current_time() - began == pytest.approx(CALLBACK_GRACE_S)


async def test_a_mailbox_that_cannot_be_bound_says_so(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot listen for results"):
        async with listen_for_results(tmp_path / "missing" / "callback.sock"):
            pytest.fail("bound to nothing")
