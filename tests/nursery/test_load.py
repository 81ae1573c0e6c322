"""The load generator against a scripted daemon on a real Unix socket."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from granville.errors import GranvilleError, StartupError
from granville.testing.latency import Record
from granville.testing.load import Plan, request_maker, run_load
from granville.wire.framing import FrameReader
from granville.wire.messages import Ack, Delta, ErrorReply, Request, Result, Usage, chat_json, encode, parse_message

Answer = Callable[[trio.SocketStream, Request], Awaitable[None]]


async def answer_in_pieces(stream: trio.SocketStream, request: Request) -> None:
    await stream.send_all(encode(Ack(request.id)))
    if request.stream:
        await stream.send_all(encode(Delta(request.id, "one")) + encode(Delta(request.id, " two")))
    usage = Usage(prompt_tokens=7, cached_tokens=3, completion_tokens=request.max_tokens)
    await stream.send_all(encode(Result(request.id, "m", "__chat__", chat_json("one two"), "normal", "length", usage)))


async def refuse(stream: trio.SocketStream, request: Request) -> None:
    await stream.send_all(encode(ErrorReply(request.id, "queue_full", 429)))


async def hang_up(stream: trio.SocketStream, request: Request) -> None:
    await stream.aclose()


async def run_against(answer: Answer, plan: Plan) -> list[Record]:
    """Run a plan against a daemon that takes the requests of a connection one after the other."""

    async def serve(stream: trio.SocketStream) -> None:
        reader = FrameReader()
        async with stream:
            async for data in stream:
                for value in reader.feed(data):
                    request, _ = parse_message(value)
                    assert isinstance(request, Request)
                    await answer(stream, request)

    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(plan.socket)
    listening.listen(16)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listening)])
            try:
                return await run_load(plan)
            finally:
                nursery.cancel_scope.cancel()


def plan_for(folder: Path, requests: int, clients: int, in_flight: int = 1, *, stream: bool = True) -> Plan:
    make = request_maker(max_tokens=(8, 16), stream=stream)
    return Plan(socket=str(folder / "s"), make=make, clients=clients, requests=requests, in_flight=in_flight, first=100)


async def test_every_request_has_a_record_with_its_times_in_order(tmp_path: Path) -> None:
    records = await run_against(answer_in_pieces, plan_for(tmp_path, 10, 3, 2))
    assert len({record.id for record in records}) == 10
    for record in records:
        assert record.error is None
        assert record.accepted is not None
        assert record.ended is not None
        assert len(record.pieces) == 2
        assert record.sent <= record.accepted <= record.pieces[0] <= record.pieces[1] <= record.ended
        assert (record.prompt_tokens, record.cached_tokens) == (7, 3)
    assert sorted(record.completion_tokens for record in records) == [8] * 5 + [16] * 5


async def test_an_answer_in_one_piece_has_no_pieces(tmp_path: Path) -> None:
    (record,) = await run_against(answer_in_pieces, plan_for(tmp_path, 1, 1, stream=False))
    assert record.pieces == []
    assert record.completion_tokens == 8


async def test_a_refused_request_is_recorded_and_the_next_one_is_sent(tmp_path: Path) -> None:
    records = await run_against(refuse, plan_for(tmp_path, 5, 2))
    assert [record.error for record in records] == ["queue_full"] * 5


async def test_in_flight_bounds_what_a_connection_has_outstanding(tmp_path: Path) -> None:
    waiting: list[Request] = []
    most = 0

    async def answer_in_threes(stream: trio.SocketStream, request: Request) -> None:
        nonlocal most
        waiting.append(request)
        most = max(most, len(waiting))
        if len(waiting) == 3:
            for each in waiting:
                await answer_in_pieces(stream, each)
            waiting.clear()

    records = await run_against(answer_in_threes, plan_for(tmp_path, 12, 1, 3))
    assert len(records) == 12
    assert most == 3


async def test_a_daemon_that_hangs_up_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesGroup(pytest.RaisesExc(GranvilleError, match="closed a connection with 1 answers")),
    ):
        await run_against(hang_up, plan_for(tmp_path, 1, 1))


def test_a_connection_that_breaks_is_one_line_and_a_status(tmp_path: Path) -> None:
    """A daemon that dies with requests unread resets its connections; one that has read them closes."""
    for unread in (True, False):
        path = tmp_path / f"unread-{unread}"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen()
            command = [sys.executable, "-m", "granville.testing.load", "--socket", str(path), "--clients", "2"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as load:
                connections = [listening.accept()[0] for _ in range(2)]
                for connection in connections:
                    with connection:
                        connection.recv(65536, socket.MSG_PEEK if unread else 0)
                out, err = load.communicate(timeout=30)
        assert (load.returncode, out) == (1, "")
        assert err.startswith("load: the ")
        assert err.count("\n") == 1, err


async def test_no_daemon_is_an_error_that_names_the_socket(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=f"no daemon is listening on {tmp_path}"):
        await run_load(plan_for(tmp_path, 1, 1))
