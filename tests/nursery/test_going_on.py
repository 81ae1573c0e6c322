"""A model fails and comes back: its jobs go on where their clients have read to, and nothing is said twice."""

from __future__ import annotations

from typing import Any

import trio

from granville.testing.kernel import Client, request, running_kernel

TEXT = "one two three four five six"


async def everything(client: Client, *ids: str) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """The deltas of these jobs, joined, and their ends."""
    texts = dict.fromkeys(ids, "")
    ends: dict[str, dict[str, Any]] = {}
    while len(ends) < len(ids):
        message = await client.receive()
        if "delta" in message:
            texts[message["id"]] += message["delta"]
        elif "status" not in message:
            ends[message["id"]] = message
    return texts, ends


async def test_streams_go_on_when_their_model_is_back() -> None:
    async with running_kernel(slots=3, decode_s=1.0, fault="raise", fault_after_steps=4, resume=True) as k:
        client = k.connect()
        ids = ("a", "b", "c")
        await client.send(*(request(id, f"{id} {TEXT}", stream=True) for id in ids))
        texts, ends = await everything(client, *ids)
        assert texts == {id: f"{id} {TEXT}" for id in ids}
        for id in ids:
            assert ends[id]["tool_input_json"] == f'["{id} {TEXT}"]'
            assert ends[id]["usage"] == {"prompt_tokens": 7, "cached_tokens": 0, "completion_tokens": 7}
        assert k.drivers[0].loads == 2
        assert k.desk.counters.failed == 0


async def test_what_was_said_counts_against_max_tokens() -> None:
    async with running_kernel(decode_s=1.0, fault="raise", fault_after_steps=3, resume=True) as k:
        client = k.connect()
        await client.send(request("a", TEXT, stream=True, max_tokens=4))
        texts, ends = await everything(client, "a")
        assert (texts["a"], ends["a"]["finish_reason"]) == ("one two three four", "length")


async def test_who_fails_it_twice_ends_and_keeps_what_was_read() -> None:
    """Whatever is said before the fault counts as read; the others end well."""
    async with running_kernel(slots=2, decode_s=1.0, fault="raise", fault_word="poison", resume=True) as k:
        client = k.connect()
        await client.send(request("good", TEXT, stream=True))
        await trio.sleep(2.5)
        await client.send(request("bad", "a poison", stream=True))
        texts, ends = await everything(client, "good", "bad")
        assert (ends["bad"]["error"], ends["bad"]["code"]) == ("driver_failed", 502)
        assert texts == {"good": TEXT, "bad": ""}


async def test_a_parked_stream_goes_on_too() -> None:
    async with running_kernel(decode_s=1.0, fault="raise", fault_after_steps=5, resume=True) as k:
        client = k.connect()
        await client.send(request("low", TEXT, stream=True, priority="low"))
        await trio.sleep(2.5)
        await client.send(request("urgent", "a b c", stream=True, priority="critical"))
        texts, ends = await everything(client, "low", "urgent")
        assert k.desk.counters.preemptions == 1
        assert texts == {"low": TEXT, "urgent": "a b c"}
        assert [end.get("error") for end in ends.values()] == [None, None]


async def test_a_turn_of_a_session_is_remembered_whole() -> None:
    async with running_kernel(decode_s=1.0, fault="raise", fault_after_steps=4, resume=True) as k:
        client = k.connect()
        await client.send(request("a", TEXT, session_id="s"))
        await everything(client, "a")
        transcript = k.desk.sessions.known("s")
        assert transcript is not None
        said = transcript.turns[-1]
        assert (said.content, said.token_ids) == (TEXT, tuple(range(6)))


async def test_what_was_read_waits_for_its_own_model_and_what_was_not_moves() -> None:
    """The model cannot be loaded again for a while; another of the type is free."""
    async with running_kernel(models=2, slots=2, decode_s=1.0, fault="raise", fault_after_steps=4, resume=True) as k:
        k.drivers[1].steps = 1_000  # beyond its fault
        client = k.connect()
        ask = {"model_id": None}
        await client.send(
            request("held", TEXT, model_id="fake-1"), request("held2", TEXT, model_id="fake-1"),
            request("read", TEXT, stream=True, **ask), request("unread", TEXT, **ask),
        )  # fmt: skip
        assert k.drivers[0].plan is not None
        k.drivers[0].plan.load_error, k.drivers[0].plan.failing_loads = "not yet", 4
        texts, ends = await everything(client, "held", "held2", "read", "unread")
        assert (ends["unread"]["model_id"], ends["read"]["model_id"]) == ("fake-1", "fake-0")
        assert texts["read"] == TEXT
        assert ends["unread"]["tool_input_json"] == f'["{TEXT}"]'
        assert k.drivers[0].loads == 5


async def test_what_was_read_ends_when_its_model_is_unloaded() -> None:
    async with running_kernel(models=2, decode_s=1.0, fault="raise", fault_after_steps=3, resume=True) as k:
        client = k.connect()
        await client.send(request("read", TEXT, stream=True))
        plan = k.drivers[0].plan
        assert plan is not None
        plan.load_error, plan.failing_loads = "never again", None
        await trio.sleep(10)
        assert (await k.connect().ask({"op": "unload", "model_id": "fake-0", "force": True}))["state"] == "unloaded"
        _, ends = await everything(client, "read")
        assert (ends["read"]["error"], ends["read"]["code"]) == ("no_model", 503)
        assert "had begun this job's answer" in ends["read"]["message"]
