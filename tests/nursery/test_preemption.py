"""A more urgent job takes the slot of the least urgent one, which goes on later where it stopped."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from granville.testing.kernel import Client, Kernel, request, running_kernel

MIB = 1 << 20
GIB = 1 << 30
WORDS = "one two three four five six seven eight"


async def collect(client: Client, count: int) -> list[dict[str, Any]]:
    return [await client.terminal() for _ in range(count)]


async def state(client: Client, id: str) -> str:
    """Asked on its own connection."""
    reply = await client.ask({"op": "status", "id": id})
    return str(reply["state"])


async def settle(seconds: float = 0.0) -> None:
    await trio.sleep(seconds)
    await trio.testing.wait_all_tasks_blocked()


async def test_a_critical_job_takes_the_slot_of_a_low_one() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client, asker = k.connect(), k.connect()
        await client.send(request("low", WORDS, priority="low"))
        await settle(2.5)
        await client.send(request("urgent", "now please do it", priority="critical"))
        await settle(2.1)
        assert [await state(asker, id) for id in ("low", "urgent")] == ["parked", "running"]
        ends = await collect(client, 2)
        assert [end["id"] for end in ends] == ["urgent", "low"]
        assert ends[1]["tool_input_json"] == f'["{WORDS}"]'
        assert ends[1]["usage"]["completion_tokens"] == 8
        status = await asker.ask({"op": "status"})
        assert (status["jobs"]["parked"], status["jobs"]["preemptions"]) == (0, 1)


async def test_deltas_go_on_where_they_stopped() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client, other = k.connect(), k.connect()
        await client.send(request("low", WORDS, priority="low", stream=True))
        await settle(2.5)
        await other.send(request("urgent", WORDS, priority="high"))
        text = ""
        while "tool_id" not in (message := await client.receive()):
            text += message.get("delta", "")
        assert text == WORDS


async def test_the_lowest_class_goes_first_and_of_it_the_last_that_came() -> None:
    async with running_kernel(decode_s=1.0, slots=4) as k:
        client, asker = k.connect(), k.connect()
        for id, level in (("n1", "normal"), ("l1", "low"), ("l2", "low"), ("h1", "high")):
            await client.send(request(id, WORDS, priority=level))
        await settle(1.5)
        await client.send(request("u1", WORDS, priority="critical"))
        await settle(2.1)
        assert [await state(asker, id) for id in ("n1", "l1", "l2", "h1")] == [
            "running",
            "running",
            "parked",
            "running",
        ]
        await client.send(request("u2", WORDS, priority="high"))
        await settle(2.1)
        assert await state(asker, "l1") == "parked"
        await client.send(request("u3", WORDS, priority="normal"))
        await settle(0.6)
        assert await state(asker, "u3") == "waiting", "its own class is not parked for it"
        assert sorted(end["id"] for end in await collect(client, 7)) == ["h1", "l1", "l2", "n1", "u1", "u2", "u3"]


async def test_a_job_is_parked_three_times_and_then_keeps_its_slot() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client, asker = k.connect(), k.connect()
        await client.send(request("low", WORDS, priority="low"))
        await settle(1.5)
        for round in range(3):
            await client.send(request(f"u{round}", "a", priority="critical"))
            assert (await client.terminal())["id"] == f"u{round}"
            await settle(1.1)
        await client.send(request("u3", "a", priority="critical"))
        await settle(0.5)
        assert [await state(asker, id) for id in ("low", "u3")] == ["running", "waiting"]
        assert [end["id"] for end in await collect(client, 2)] == ["low", "u3"]


async def test_age_puts_first_but_parks_nobody() -> None:
    async with running_kernel(decode_s=1.0, age_after_s=2.0) as k:
        client, asker = k.connect(), k.connect()
        await client.send(request("first", WORDS * 3, priority="low"), request("old", "a", priority="low"))
        await settle(12.0)
        assert await state(asker, "old") == "waiting"
        await client.send(request("fresh", WORDS, priority="normal"))
        await settle(2.1)
        assert await state(asker, "first") == "parked", "for the fresh one of a higher class"
        assert (await client.terminal())["id"] == "fresh"


@pytest.mark.parametrize("how", ["cancel", "deadline", "leaves"])
async def test_a_parked_job_can_end(how: str) -> None:
    async with running_kernel(decode_s=1.0) as k:
        client, other = k.connect(), k.connect()
        more = {"timeout_ms": 4000} if how == "deadline" else {}
        await client.send(request("low", WORDS, priority="low", **more))
        await settle(1.5)
        await other.send(request("urgent", WORDS, priority="critical"))
        await settle(2.1)
        if how == "cancel":
            assert (await other.receive())["id"] == "urgent"
            assert await other.ask({"op": "cancel", "id": "low"}) == {"id": "low", "state": "cancelled"}
        if how == "leaves":
            await client.stream.aclose()
        else:
            end = await client.terminal()
            assert end["error"] == {"cancel": "cancelled", "deadline": "deadline_exceeded"}[how]
            assert how == "cancel" or "while the job was parked" in end["message"]
        await settle(1.1)
        (model,) = k.drivers[0].models
        assert not model._parked
        assert (await other.terminal())["id"] == "urgent"
        assert (await other.ask(request("next", "a")))["id"] == "next"
        assert (await other.terminal())["tool_input_json"] == '["a"]'


async def test_a_job_that_is_cancelled_while_it_is_parked_by_the_driver() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client = k.connect()
        await client.send(request("low", WORDS, priority="low"))
        await settle(1.5)
        await client.send(request("urgent", "a b", priority="critical"), {"op": "cancel", "id": "low"})
        ends = {end["id"]: end for end in await collect(client, 2)}
        assert (ends["low"]["error"], ends["urgent"]["tool_input_json"]) == ("cancelled", '["a b"]')
        assert (await client.ask(request("next", "a")))["id"] == "next"
        assert (await client.terminal())["id"] == "next"


async def test_parked_jobs_do_not_count_against_the_bound() -> None:
    async with running_kernel(decode_s=1.0, slots=2, queue_size=1) as k:
        client = k.connect()
        await client.send(request("l1", WORDS, priority="low"), request("l2", WORDS, priority="low"))
        await settle(1.5)
        await client.send(request("u1", WORDS, priority="critical"))
        await settle(0.2)
        await client.send(request("u2", WORDS, priority="critical"))
        await settle(0.2)
        await client.send(request("waits", "a", priority="low"))
        await client.send(request("over", "a", priority="low"))
        ends = {end["id"]: end for end in await collect(client, 6)}
        assert ends.pop("over")["error"] == "queue_full"
        assert all("tool_id" in end for end in ends.values())


async def test_shutting_down_finishes_what_is_parked() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client = k.connect()
        await client.send(request("low", WORDS, priority="low"), request("waits", "a", priority="low"))
        await settle(1.5)
        await client.send(request("urgent", "a b", priority="critical"))
        await settle(0.2)
        k.desk.stop()
        ends = {end["id"]: end for end in await collect(client, 3)}
        assert ends["waits"]["error"] == "shutting_down"
        assert ends["low"]["tool_input_json"] == f'["{WORDS}"]'


async def test_a_lost_model_loses_what_it_had_parked_and_the_job_begins_anew() -> None:
    async with running_kernel(decode_s=1.0, fault="raise", fault_word="boom") as k:
        client, streaming = k.connect(), k.connect()
        await client.send(request("low", WORDS, priority="low"))
        await settle(1.5)
        await client.send(request("boom", "boom now", priority="critical"))
        ends = {end["id"]: end for end in await collect(client, 2)}
        assert ends["boom"]["error"] == "driver_failed"
        assert ends["low"]["tool_input_json"] == f'["{WORDS}"]'
        await streaming.send(request("shown", WORDS, priority="low", stream=True))
        await settle(2.5)
        await client.send(request("boom2", "boom now", priority="critical"))
        assert (await streaming.terminal())["error"] == "driver_failed", "its client has read some of it"


async def test_with_no_memory_for_its_state_nothing_is_parked() -> None:
    async with running_kernel(decode_s=1.0, memory_bytes=300 * MIB, kv_ram_bytes=MIB, token_bytes=MIB) as k:
        client, asker = k.connect(), k.connect()
        await client.send(request("l1", WORDS, priority="low"))
        await settle(1.5)
        await client.send(request("h1", WORDS, priority="high"))
        await settle(2.1)
        assert await state(asker, "l1") == "parked"
        await client.send(request("u1", WORDS, priority="critical"))
        await settle(0.5)
        assert [await state(asker, id) for id in ("h1", "u1")] == ["running", "waiting"]
        assert [end["id"] for end in await collect(client, 3)] == ["h1", "u1", "l1"]


async def test_with_two_models_the_lowest_class_of_both_yields() -> None:
    async with running_kernel(models=2, decode_s=1.0) as k:
        client, asker = k.connect(), k.connect()
        await client.send(request("high", WORDS, priority="high"), request("low", WORDS, priority="low"))
        await settle(1.5)
        await client.send(request("urgent", WORDS, priority="critical"))
        await settle(2.1)
        assert [await state(asker, id) for id in ("high", "low")] == ["running", "parked"]
        assert {end["id"] for end in await collect(client, 3)} == {"high", "low", "urgent"}
        assert sum(len(model._parked) for driver in k.drivers for model in driver.models) == 0


async def test_a_turn_that_an_urgent_one_waits_for_is_urgent(autojump_clock: Any) -> None:
    def says(k: Kernel) -> int:
        return k.desk.counters.preemptions

    async with running_kernel(decode_s=1.0) as k:
        client = k.connect()
        await client.send(request("busy", WORDS, priority="normal"))
        await settle(1.5)
        await client.send(request("t1", "a", priority="low", session_id="s"))
        await settle(0.2)
        assert says(k) == 0
        await client.send(request("t2", "b", priority="critical", session_id="s"))
        ends = await collect(client, 3)
        assert [end["id"] for end in ends] == ["t1", "t2", "busy"]
        assert [end["priority"] for end in ends] == ["low", "critical", "normal"]


async def test_each_model_that_keeps_states_has_a_share_of_their_memory() -> None:
    async with running_kernel(types=["inference", "embedding", "inference"], memory_bytes=GIB, kv_ram_bytes=MIB) as k:
        assert k.desk.cache_share() == MIB // 2
        await settle()
        assert [driver.models[0].cache_limit for driver in k.drivers] == [MIB // 2, 0, MIB // 2]


async def test_shutting_down_starts_nothing_and_parks_nobody() -> None:
    """The end of a turn that waits to be ranked would else be the beginning of the next, which is urgent."""
    async with running_kernel(decode_s=1.0, scores=True, rank_ms=5000) as k:
        client = k.connect()
        await settle(60)
        await client.send(request("low", WORDS, priority="low"))
        await settle(0.1)
        await client.send(request("t1", "a", ranked=True, session_id="s"))
        await client.send(request("t2", "b", priority="critical", session_id="s"))
        await settle(0.1)
        assert k.queue == 2
        k.desk.stop()
        ends = {end["id"]: end for end in await collect(client, 3)}
        assert (ends["t1"]["error"], ends["t2"]["error"]) == ("shutting_down", "shutting_down")
        assert "tool_id" in ends["low"]
        assert k.desk.counters.preemptions == 0
