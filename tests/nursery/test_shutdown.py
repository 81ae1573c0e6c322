"""The end: what runs is finished within its grace, what waits is told, everything is delivered."""

from __future__ import annotations

import trio

from granville.testing.kernel import Kernel, request, running_kernel


async def _drained(k: Kernel) -> float:
    """Seconds until the last job was delivered."""
    began = trio.current_time()
    await k.desk.drained.wait()
    return trio.current_time() - began


async def test_running_jobs_finish_and_waiting_ones_are_told() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client = k.connect()
        await client.send(request("runs", "a b c"), request("waits"))
        await client.receive()
        await client.receive()
        k.desk.stop()
        waits = await client.receive()
        assert (waits["id"], waits["error"], waits["code"]) == ("waits", "shutting_down", 503)
        late = await client.ask(request("late"))
        assert (late["id"], late["error"]) == ("late", "shutting_down")
        assert (await client.receive())["tool_input_json"] == '["a b c"]'
        assert await _drained(k) == 0
        assert k.desk.health()["status"] == "draining"


async def test_stop_with_nothing_to_do_is_drained_at_once() -> None:
    async with running_kernel() as k:
        k.desk.stop()
        assert k.desk.drained.is_set()


async def test_drain_finishes_what_waits_too() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client = k.connect()
        await client.send(request("runs", "a"), request("waits", "b"))
        await client.receive()
        await client.receive()
        assert await client.ask({"op": "drain"}) == {"state": "draining", "jobs": 2}
        assert [(await client.receive())["tool_input_json"] for _ in range(2)] == ['["a"]', '["b"]']
        assert await _drained(k) == 0
        assert k.desk.stop_requested.is_set()


async def test_the_same_request_is_acknowledged_even_while_draining() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client = k.connect()
        await client.ask(request("runs", "a b"))
        k.desk.stop()
        assert await client.ask(request("runs", "a b")) == {"id": "runs", "status": "accepted"}
        assert (await client.receive())["tool_input_json"] == '["a b"]'
