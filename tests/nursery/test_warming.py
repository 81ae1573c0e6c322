"""`warm`: a prompt that is read before it is asked, on the model that would get it, for as long as it was asked for."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from granville.client.connection import serve_client
from granville.errors import BadRequest, NoModel, ShuttingDown, Unsupported
from granville.nursery.warming import MAX_WARM
from granville.testing.kernel import Kernel, request, running_kernel
from granville.wire.messages import ChatMessage, Request

SYSTEM = {"role": "system", "content": "w " * 40}
TOOL = {"name": "look", "description": "Look it up", "parameters": {"type": "object", "properties": {}}}
PACE: dict[str, Any] = {"prefill_token_s": 0.1, "decode_s": 0.01}
"""The system prompt takes four seconds."""


def warm(ttl_ms: int = 60_000, **more: Any) -> dict[str, Any]:
    more = more if "session_id" in more else {"messages": [SYSTEM]} | more
    return {"op": "warm", "ttl_ms": ttl_ms, **more}


def ask(id: str, text: str = "what now", **more: Any) -> dict[str, Any]:
    return {"id": id, "messages": [SYSTEM, {"role": "user", "content": text}], **more}


def kept(kernel: Kernel) -> int:
    return int(kernel.desk.status()["warm"]["kept"])


async def test_it_is_answered_at_once_and_read_before_a_request_comes() -> None:
    async with running_kernel(**PACE) as kernel:
        client = kernel.connect()
        began = trio.current_time()
        reply = await client.ask(warm(rid=7))
        assert reply == {"ok": True, "model_id": "fake-0", "state": "warming", "rid": 7}
        assert trio.current_time() == began
        await trio.sleep(5)
        await client.send(ask("a"))
        usage = (await client.terminal())["usage"]
        assert usage == {"prompt_tokens": 42, "cached_tokens": 40, "completion_tokens": 2}
        assert trio.current_time() - began < 5.5
        assert kernel.desk.status()["warm"] == {"kept": 1, "bytes": 0, "hits": 1}


async def test_who_waits_is_told_when_it_is_done_and_others_pass_meanwhile() -> None:
    async with running_kernel(**PACE) as kernel:
        client = kernel.connect()
        await client.send(warm(rid=1, wait=True), {"op": "ping", "rid": 2})
        assert (await client.receive())["rid"] == 2
        assert await client.receive() == {
            "ok": True, "model_id": "fake-0", "state": "warm", "prompt_tokens": 40, "cached_tokens": 0, "rid": 1,
        }  # fmt: skip


async def test_jobs_go_first() -> None:
    async with running_kernel(slots=1, **PACE) as kernel:
        client = kernel.connect()
        await client.send(warm(rid=1, wait=True))
        for index in range(3):
            await client.send(request(f"j{index}", "x " * 10))
        order = [message.get("id", "warm") for message in [await client.receive() for _ in range(7)]]
        assert order[-1] == "warm"


async def test_it_is_kept_for_its_time_and_no_longer() -> None:
    async with running_kernel() as kernel:
        client = kernel.connect()
        await client.ask(warm(ttl_ms=10_000))
        await trio.sleep(9.9)
        assert kept(kernel) == kernel.desk.models[0].stats()["warm"] == 1
        await client.ask(warm(ttl_ms=10_000))  # the same again begins anew
        await trio.sleep(9.9)
        assert kept(kernel) == kernel.desk.models[0].stats()["warm"] == 1
        await trio.sleep(0.2)
        assert kept(kernel) == kernel.desk.models[0].stats()["warm"] == 0


async def test_one_more_takes_the_place_of_the_oldest() -> None:
    async with running_kernel() as kernel:
        client = kernel.connect()
        for index in range(MAX_WARM + 3):
            await client.ask(warm(messages=[{"role": "system", "content": f"number {index}"}]))
        await trio.sleep(1)
        assert kept(kernel) == kernel.desk.models[0].stats()["warm"] == MAX_WARM
        await client.send({"id": "a", "messages": [{"role": "system", "content": f"number {MAX_WARM + 2}"}]})
        assert (await client.terminal())["usage"]["cached_tokens"] == 2
        await client.send({"id": "b", "messages": [{"role": "system", "content": "number 0"}]})
        assert (await client.terminal())["usage"]["cached_tokens"] == 0


async def test_a_session_is_warm_where_it_is_until_its_next_turn() -> None:
    async with running_kernel(models=2) as kernel:
        client = kernel.connect()
        await client.send(request("one", "a b c", session_id="talk", model_id="fake-1"))
        await client.terminal()
        reply = await client.ask(warm(session_id="talk", wait=True))
        assert reply | {"state": "warm", "model_id": "fake-1", "prompt_tokens": 6} == reply
        assert [model.stats()["warm"] for model in kernel.desk.models] == [0, 1]
        await client.send(request("two", "d", session_id="talk"))
        result = await client.terminal()
        assert (result["model_id"], result["usage"]["cached_tokens"]) == ("fake-1", 6)
        assert kept(kernel) == kernel.desk.models[1].stats()["warm"] == 0


async def test_while_a_session_speaks_its_end_is_awaited() -> None:
    async with running_kernel(decode_s=1.0) as kernel:
        client = kernel.connect()
        await client.ask(request("one", "a b c", session_id="talk"))
        await client.send(warm(session_id="talk", wait=True))
        assert (await client.receive())["id"] == "one"
        assert (await client.receive())["prompt_tokens"] == 6
        assert kept(kernel) == 1


async def test_a_session_that_nobody_knows_is_cold() -> None:
    async with running_kernel() as kernel:
        reply = await kernel.connect().ask(warm(session_id="nobody"))
        assert reply == {"ok": True, "model_id": "fake-0", "state": "cold", "prompt_tokens": 0, "cached_tokens": 0}
        assert kept(kernel) == 0


async def test_a_turn_that_fails_leaves_nothing_to_keep() -> None:
    async with running_kernel(decode_s=1.0) as kernel:
        client = kernel.connect()
        await client.ask(request("one", "a b c", session_id="talk"))
        await client.send(warm(session_id="talk", wait=True), {"op": "cancel", "id": "one", "rid": 2})
        replies = [await client.receive() for _ in range(3)]
        assert {"state": "cold"}.items() <= next(reply for reply in replies if "ok" in reply).items()
        assert kept(kernel) == 0


async def test_a_model_that_is_loaded_again_reads_it_again() -> None:
    async with running_kernel(fault="fail_job", **PACE) as kernel:
        client = kernel.connect()
        assert (await client.ask(warm(wait=True)))["state"] == "warm"
        model = kernel.drivers[0].models[0]
        model._plan.fault, model._plan.fault_after_steps = "raise", kernel.drivers[0].steps + 1
        await client.send(request("a"))
        await client.terminal()
        await trio.sleep(60 - trio.current_time() % 60 - 10)
        assert len(kernel.drivers[0].models) == 2
        await client.send(ask("b"))
        assert (await client.terminal())["usage"]["cached_tokens"] == 40


async def test_a_model_that_is_unloaded_keeps_nothing() -> None:
    async with running_kernel(models=2, **PACE) as kernel:
        client = kernel.connect()
        await client.send(warm(model_id="fake-1", wait=True, rid=1), {"op": "unload", "model_id": "fake-1", "rid": 2})
        replies = {reply["rid"]: reply for reply in [await client.receive() for _ in range(2)]}
        assert replies[1]["state"] == "cold"
        assert replies[2]["state"] == "unloaded"
        assert kept(kernel) == 0


async def test_the_model_is_the_one_that_a_request_would_get() -> None:
    async with running_kernel(models=3, strategy="round-robin") as kernel:
        client = kernel.connect()
        for _ in range(2):  # it takes nobody's turn
            assert (await client.ask(warm()))["model_id"] == "fake-0"
        await client.send(ask("a"))
        assert (await client.terminal())["model_id"] == "fake-0"
        assert (await client.ask(warm()))["model_id"] == "fake-1"
    async with running_kernel(models=2, decode_s=1.0) as kernel:
        client = kernel.connect()
        await client.ask(request("busy"))
        assert (await client.ask(warm()))["model_id"] == "fake-1"


async def test_tools_may_be_written_in_any_way_and_are_checked() -> None:
    async with running_kernel() as kernel:
        kernel.desk.roster["fake-0"].features |= {"tools"}
        client = kernel.connect()
        await client.ask(warm(tools=[TOOL], tool_choice="required"))
        await client.ask(warm(tools=[{"type": "function", "function": TOOL}], tool_choice="required"))
        await trio.sleep(1)
        assert kept(kernel) == 1, "they are the same"
        reply = await client.ask(warm(tools=[{"name": "no name at all"}]))
        assert reply["code"] == 400
        assert reply["message"].startswith("tools")


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"ttl_ms": 1}, 400, "session_id: missing; `warm` needs a session or the messages"),
        ({"ttl_ms": 1, "session_id": "s", "messages": [SYSTEM]}, 400, "give either `session_id` or `messages`"),
        ({"messages": [SYSTEM]}, 400, "ttl_ms: missing; say for how long to keep it warm, 1 to 600000 milliseconds"),
        ({"ttl_ms": 600_001, "messages": [SYSTEM]}, 400, "ttl_ms: expected `int` <= 600000"),
        ({"ttl_ms": 1, "messages": []}, 400, "messages: expected `array` of length >= 1"),
        ({"ttl_ms": 1, "messages": [SYSTEM], "priority": "soon"}, 400, "priority: expected null or one of critical"),
        ({"ttl_ms": 1, "messages": [SYSTEM], "model_id": "none"}, 404, "model_id: no model 'none' here"),
        ({"ttl_ms": 1, "messages": [SYSTEM], "model_type": "stt"}, 503, "no model of type stt is loaded"),
        ({"ttl_ms": 1, "messages": [SYSTEM], "model_type": "embedding"}, 422, "messages: the model cannot do this"),
    ],
)
async def test_what_is_wrong_is_told(fields: dict[str, Any], code: int, text: str) -> None:
    async with running_kernel(types=["inference", "embedding"]) as kernel:
        reply = await kernel.connect().ask({"op": "warm", "rid": "r"} | fields)
        assert (reply["code"], reply["rid"]) == (code, "r")
        assert text in reply["message"]


async def test_priority_is_read_in_any_case() -> None:
    async with running_kernel() as kernel:
        assert (await kernel.connect().ask(warm(priority="HIGH")))["ok"]


async def test_a_driver_that_cannot_and_a_daemon_that_ends_say_so() -> None:
    async with running_kernel(warm=False) as kernel:
        assert (await kernel.connect().ask(warm()))["code"] == Unsupported.code
    async with running_kernel() as kernel:
        kernel.desk.close(finish_waiting=True)
        assert (await kernel.connect().ask(warm()))["code"] == ShuttingDown.code
    async with running_kernel(models=1) as kernel:
        kernel.desk.roster["fake-0"].state = "restarting"
        assert (await kernel.connect().ask(warm()))["code"] == NoModel.code


async def test_a_client_that_goes_away_leaves_it_warm() -> None:
    async with running_kernel(**PACE) as kernel:
        client = kernel.connect()
        await client.send(warm(wait=True))
        await trio.sleep(0.1)
        await client.stream.aclose()
        await trio.sleep(10)
        assert kernel.desk.models[0].stats()["warm"] == 1


async def test_the_sdk_has_it() -> None:
    async with running_kernel() as kernel, serve_client(kernel.connect().stream) as client:
        messages = [ChatMessage("system", "be brief")]
        reply = await client.warm(messages=messages, ttl_ms=1000, priority="high")
        assert reply == {"ok": True, "model_id": "fake-0", "state": "warming"}
        assert (await client.warm(messages=messages, ttl_ms=1000, wait=True))["state"] == "warm"
        assert (await client.warm(session_id="nobody", ttl_ms=1000))["state"] == "cold"
        with pytest.raises(BadRequest, match="ttl_ms"):
            await client.warm(messages=messages, ttl_ms=0)
        with pytest.raises(Unsupported, match="tools"):
            await client.warm(messages=messages, ttl_ms=1000, tools=[TOOL])


async def test_what_was_spoken_is_what_the_session_remembers() -> None:
    """What a client sends back in `messages` fits what was kept."""
    async with running_kernel() as kernel, serve_client(kernel.connect().stream) as client:
        result = await client.submit(Request(id="one", text="a  b c", session_id="talk"))
        (turn,) = [turn for turn in kernel.desk.sessions.history("talk", "fake-0") if turn.role == "assistant"]
        assert turn.content == result.spoken == "a b c"
