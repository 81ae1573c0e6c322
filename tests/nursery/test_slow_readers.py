"""Clients that do not read: their deltas are merged, up to a bound, and nobody else waits for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from granville.doors import outbox
from granville.doors.peer import Peer
from granville.hosting.interface import Audio, Event
from granville.nursery.connection import Connection
from granville.testing.fake import FakeDriver, FakeModel
from granville.testing.kernel import Client, Kernel, request, running_kernel
from granville.testing.sound import RATE
from granville.wire import wav


class Tap(trio.abc.Stream):
    """A stream that takes nothing while it is shut."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.inner = inner
        self.open = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.open.wait()
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.inner.aclose()


def connect(k: Kernel) -> tuple[Client, Tap]:
    ours, theirs = trio.testing.memory_stream_pair()
    tap = Tap(theirs)

    async def serve() -> None:
        async with tap:
            await Connection(tap, Peer(None), k.desk, k.senders).run()

    k.nursery.start_soon(serve)
    return Client(ours), tap


async def test_deltas_of_a_slow_reader_are_merged() -> None:
    text = " ".join(f"{'x' * 3000}{n}" for n in range(300))
    async with running_kernel(decode_s=0.1, context_size=10**6) as k:
        client, tap = connect(k)
        await client.send(request("a", text, stream=True, max_tokens=1000))
        await trio.sleep(40)
        tap.open.set()
        messages = []
        while "tool_id" not in (message := await client.receive()):
            messages.append(message)
        assert "".join(m["delta"] for m in messages[1:]) == text
        assert len(messages) < 200, "past the high-water mark deltas are held back, and sent as one"


async def test_a_reader_too_slow_for_its_stream_loses_the_job() -> None:
    text = " ".join(["x" * 3000] * 300)
    limit = outbox.HIGH_WATER_BYTES
    async with running_kernel(decode_s=0.1, context_size=10**6, max_outbox_bytes=limit) as k:
        client, tap = connect(k)
        await client.send(request("a", text, stream=True, max_tokens=1000))
        await trio.sleep(29)
        assert k.desk.counters.cancelled == 1
        tap.open.set()
        assert (await client.terminal())["code"] == 499


async def test_a_client_that_takes_nothing_is_gone_and_its_job_ends() -> None:
    async with running_kernel(decode_s=1.0, write_stall_s=60) as k:
        client, _ = connect(k)
        await client.send(request("a", "word " * 1000, max_tokens=1000))
        await trio.sleep(59)
        assert k.desk.counters.cancelled == 0
        await trio.sleep(2)
        assert k.desk.counters.cancelled == 1


async def test_a_client_that_never_reads_its_acks_is_read_no_further() -> None:
    async with running_kernel(decode_s=1.0, queue_size=10**6) as k:
        client, _ = connect(k)
        other = k.connect()
        with trio.move_on_after(30):
            for n in range(10_000):
                await client.send(request(f"{n:0100}", "a"))
        accepted = k.desk.counters.accepted
        assert accepted < 3000, "its unread ACKs are over the high-water mark"
        await other.send(request("urgent", "a", priority="critical"))
        assert (await other.terminal())["id"] == "urgent"


async def test_a_reader_that_takes_a_little_now_and_then_has_not_gone() -> None:
    """Over four minutes for it all, and always some of it within `write_stall_s`."""
    async with running_kernel(context_size=10**6) as k:
        ours, theirs = trio.testing.lockstep_stream_pair()

        async def serve() -> None:
            await Connection(theirs, Peer(None), k.desk, k.senders).run()

        k.nursery.start_soon(serve)
        client = Client(ours)
        await client.send(request("long", "word " * 30_000, max_tokens=30_000))
        data = b""
        while b"completion_tokens" not in data:
            await trio.sleep(20)
            data += await ours.receive_some(12_000)
        assert trio.current_time() > 4 * k.desk.config.write_stall_s
        assert (await client.ask(request("next")))["status"] == "accepted"


class Loud(FakeModel):
    """Every word is spoken at length."""

    def step(self, prefill_ms: float | None) -> list[Event]:
        return [
            replace(event, pcm=bytes(outbox.HIGH_WATER_BYTES)) if isinstance(event, Audio) else event
            for event in super().step(prefill_ms)
        ]


async def test_a_player_that_reads_slowly_gets_all_of_it_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be further behind than a reader of text: what waits for it is kept for the result anyway."""
    monkeypatch.setattr(FakeDriver, "model_class", Loud)
    limit = outbox.HIGH_WATER_BYTES
    async with running_kernel(types=("tts",), decode_s=0.1, max_outbox_bytes=limit) as k:
        client, tap = connect(k)
        await client.send({"id": "a", "model_type": "tts", "text": "word " * 12, "stream": True})
        await trio.sleep(30)
        tap.open.set()
        deltas = []
        while "tool_id" not in (message := await client.receive()):
            deltas += [message["delta"]] if "delta" in message else []
    assert len(deltas) < 5
    assert b"".join(deltas) == wav.header(RATE) + bytes(12 * limit)
    assert len(message["output"]) == wav.HEADER_BYTES + 12 * limit
