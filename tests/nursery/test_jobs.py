"""A job's way through the kernel: accepted, started in order, ended exactly once."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from granville.testing.kernel import request, running_kernel

ACK = {"status": "accepted"}


async def test_ack_then_result() -> None:
    async with running_kernel(decode_s=0.1) as k:
        client = k.connect()
        assert await client.ask(request("a", "user input text")) == {"id": "a", **ACK}
        assert await client.receive() == {
            "id": "a",
            "model_id": "fake-0",
            "tool_id": "__chat__",
            "tool_input_json": '["user input text"]',
            "priority": "normal",
            "finish_reason": "stop",
            "usage": {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 3},
        }


async def test_deltas_join_to_the_answer() -> None:
    async with running_kernel(decode_s=0.1) as k:
        client = k.connect()
        await client.send(request("a", "one two three", stream=True))
        messages = [await client.receive() for _ in range(5)]
        assert messages[0] == {"id": "a", **ACK}
        assert [m["delta"] for m in messages[1:4]] == ["one", " two", " three"]
        assert messages[4]["tool_input_json"] == '["one two three"]'


async def test_requests_are_answered_in_any_order() -> None:
    async with running_kernel(decode_s=0.1, slots=2) as k:
        client = k.connect()
        await client.send(request("long", "a b c d e f"), request("short", "a"))
        assert [(await client.receive())["id"] for _ in range(4)] == ["long", "short", "short", "long"]


async def test_a_critical_job_behind_a_hundred_low_ones_starts_next() -> None:
    """Where nothing can be parked."""
    async with running_kernel(decode_s=1.0, park=False) as k:
        client = k.connect()
        await client.send(*(request(f"low{n}", "a b", priority="low") for n in range(100)))
        await trio.testing.wait_all_tasks_blocked()
        await client.send(request("urgent", "a", priority="CRITICAL"))
        ends = []
        while "urgent" not in ends:
            message = await client.terminal()
            ends.append(message["id"])
        assert ends == ["low0", "urgent"]
        assert message["priority"] == "critical"


async def test_the_bound_is_exact() -> None:
    async with running_kernel(decode_s=1.0, queue_size=5) as k:
        client = k.connect()
        await client.send(*(request(str(n)) for n in range(6)))
        assert [await client.receive() for _ in range(6)] == [{"id": str(n), **ACK} for n in range(6)]
        assert k.queue == 5
        refusal = await client.ask(request("over"))
        assert (refusal["id"], refusal["error"], refusal["code"]) == ("over", "queue_full", 429)
        assert refusal["retry_after_ms"] > 0
        assert k.queue == 5
        assert {(await client.terminal())["id"] for _ in range(6)} == set("012345")


async def test_a_deadline_covers_waiting_and_running() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client = k.connect()
        await client.send(request("runs", "a b c d e f", timeout_ms=2500), request("waits", timeout_ms=500))
        await client.receive()
        await client.receive()
        began = trio.current_time()
        waits = await client.receive()
        assert (waits["id"], waits["error"], waits["code"]) == ("waits", "deadline_exceeded", 408)
        assert "waiting" in waits["message"]
        assert trio.current_time() - began == pytest.approx(0.5, abs=0.05)
        runs = await client.receive()
        assert (runs["id"], runs["code"]) == ("runs", 408)
        assert "running" in runs["message"]
        assert trio.current_time() - began == pytest.approx(2.5, abs=0.05)
        await client.send(request("next", "a"))
        assert (await client.terminal())["id"] == "next"
        assert trio.current_time() - began == pytest.approx(4.0, abs=0.05)  # the slot was free after the step under way


async def test_cancel() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client, other = k.connect(), k.connect()
        await client.send(request("runs", "a b c d"), request("waits"))
        await client.receive()
        await client.receive()
        assert await other.ask({"op": "cancel", "id": "waits", "rid": 7}) == {
            "id": "waits", "state": "cancelled", "rid": 7
        }  # fmt: skip
        assert (await client.receive())["code"] == 499
        assert (await other.ask({"op": "cancel", "id": "runs"}))["state"] == "cancelled"
        assert (await client.receive())["error"] == "cancelled"
        assert (await other.ask({"op": "cancel", "id": "runs"}))["error"] == "unknown_job"
        await client.send(request("next", "a"))
        assert (await client.terminal())["id"] == "next"
        assert k.desk.counters.cancelled == 2


async def test_a_client_that_goes_away_frees_the_slot_at_the_next_step() -> None:
    async with running_kernel(decode_s=1.0) as k:
        gone, stays = k.connect(), k.connect()
        await gone.send(request("runs", " ".join("word" for _ in range(1000))), request("waits"))
        await gone.receive()
        await gone.receive()
        began = trio.current_time()
        await gone.stream.aclose()
        await stays.send(request("next", "a"))
        assert (await stays.terminal())["id"] == "next"
        assert trio.current_time() - began < 2.1
        assert k.desk.counters.cancelled == 2
        assert (await stays.ask(request("runs", "a")))["status"] == "accepted"  # its id is free at once


async def test_the_same_request_again_runs_once() -> None:
    async with running_kernel(decode_s=1.0) as k:
        first, second = k.connect(), k.connect()
        await first.send(request("a", stream=True))
        assert await first.receive() == {"id": "a", **ACK}
        assert (await first.receive())["delta"] == "one"
        await second.send(request("a", stream=True))
        assert await second.receive() == {"id": "a", **ACK}
        rest = [await second.receive() for _ in range(4)]
        assert "".join(m["delta"] for m in rest[:3]) == "one two three"
        assert rest[3]["tool_input_json"] == '["one two three"]'
        assert k.desk.counters.accepted == 1
        await first.stream.aclose()


async def test_the_first_connection_may_go_once_the_second_has_the_job() -> None:
    async with running_kernel(decode_s=1.0) as k:
        first, second = k.connect(), k.connect()
        await first.ask(request("a"))
        await second.ask(request("a"))
        await first.stream.aclose()
        assert (await second.receive())["tool_input_json"] == '["one two three"]'


async def test_another_request_under_a_live_id_conflicts() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client = k.connect()
        await client.ask(request("a"))
        reply = await client.ask(request("a", "something else"))
        assert (reply["id"], reply["error"], reply["code"]) == ("a", "conflict", 409)
        assert (await client.receive())["tool_input_json"] == '["one two three"]'


async def test_a_session_goes_on_and_a_cancelled_turn_leaves_no_trace() -> None:
    async with running_kernel(decode_s=1.0, slots=4) as k:
        client = k.connect()

        async def prompt_tokens(id: str, **fields: Any) -> int:
            await client.send(request(id, "one two", session_id="s", **fields))
            return int((await client.terminal())["usage"]["prompt_tokens"])

        assert await prompt_tokens("1") == 2
        assert await prompt_tokens("2") == 6
        await client.send(request("x", "one two three four", session_id="s", timeout_ms=1500))
        assert (await client.terminal())["code"] == 408
        assert await prompt_tokens("3") == 10
        assert await prompt_tokens("4", reset_cache=True) == 2


async def test_turns_of_a_session_run_one_after_another() -> None:
    async with running_kernel(decode_s=1.0, slots=4) as k:
        client = k.connect()
        await client.send(*(request(str(n), "a b", session_id="s") for n in range(3)))
        ends = [await client.terminal() for _ in range(3)]
        assert [(e["id"], e["usage"]["prompt_tokens"]) for e in ends] == [("0", 2), ("1", 6), ("2", 10)]


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"model_id": "nobody"}, 404, "fake-0"),
        ({"model_type": "embedding"}, 503, "embedding"),
        ({"model_type": "embedding", "text": None}, 400, "documents"),
        ({"grammar": "root ::= x"}, 422, "grammar"),
        ({"callback": "relative.sock"}, 400, "callback"),
        ({"callback": "http://example.org/"}, 400, "loopback"),
        ({"callback": "/" + "x" * 200}, 400, "107"),
        ({"text": "many words " * 3000}, 413, "4096"),
    ],
)
async def test_refusals_name_the_request(fields: dict[str, Any], code: int, words: str) -> None:
    async with running_kernel() as k:
        client = k.connect()
        await client.send(request("bad") | fields)
        reply = await client.terminal()
        assert (reply["id"], reply["code"]) == ("bad", code)
        assert words in reply["message"]
        await client.send(request("good"))
        assert (await client.terminal())["id"] == "good"


async def test_job_status() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client, other = k.connect(), k.connect()
        await client.send(*(request(str(n)) for n in range(3)))
        for _ in range(3):
            await client.receive()
        assert (await other.ask({"op": "status", "id": "0"}))["state"] == "running"
        last = await other.ask({"op": "status", "id": "2"})
        assert (last["state"], last["position"]) == ("waiting", 1)
        assert (await other.ask({"op": "status", "id": "nobody"}))["code"] == 404


async def test_unfinished_message_after_its_time() -> None:
    async with running_kernel(decode_s=20.0, part_message_s=30.0) as k:
        client = k.connect()
        await client.ask(request("a"))
        await client.stream.send_all(b"\x82\xa2id")
        reply = await client.receive()
        assert (reply["id"], reply["code"]) == (None, 400)
        assert "30 s" in reply["message"]
        assert (await client.terminal())["tool_input_json"] == '["one two three"]'  # accepted before, so delivered
        assert await client.stream.receive_some() == b""


async def test_framing_lost() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client, other = k.connect(), k.connect()
        await client.send(request("a"))
        await client.stream.send_all(b"\xc1\xc1\xc1")
        assert (await client.receive())["id"] == "a"
        assert (await client.receive())["code"] == 400
        assert (await client.terminal())["id"] == "a"
        assert (await other.ask({"op": "ping"}))["ok"] is True


async def test_clients_share_fairly() -> None:
    async with running_kernel(decode_s=1.0) as k:
        greedy, modest = k.connect(), k.connect()
        await greedy.send(*(request(f"g{n}", "a", client="greedy") for n in range(50)))
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await modest.send(request("m", "a", client="modest"))
        assert (await modest.terminal())["id"] == "m"
        assert trio.current_time() - began < 3.1


async def test_a_wrong_control_operation_is_answered_under_its_rid() -> None:
    async with running_kernel() as k:
        client = k.connect()
        reply = await client.ask({"op": "levitate", "rid": "r1"})
        assert (reply["code"], reply["rid"]) == (400, "r1")
        reply = await client.ask({"op": "cancel", "rid": 2})
        assert (reply["code"], reply["rid"]) == (400, 2)


async def test_a_repeated_request_may_begin_to_stream_where_it_is() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client = k.connect()
        await client.ask(request("a", "one two three four"))
        await trio.sleep(2.5)
        assert await client.ask(request("a", "one two three four", stream=True)) == {"id": "a", **ACK}
        deltas = []
        while "delta" in (message := await client.receive()):
            deltas.append(message["delta"])
        assert deltas == ["one two", " three", " four"]
        assert message["tool_input_json"] == '["one two three four"]'


async def test_one_clients_flood_is_handled_in_turns() -> None:
    """Sixty thousand tiny messages come in one read; another client does not wait for all of them."""
    async with running_kernel() as k:
        flood, other = k.connect(), k.connect()
        await trio.testing.wait_all_tasks_blocked()
        await flood.stream.send_all(b"\x80" * 60_000)
        assert (await other.ask({"op": "ping"}))["ok"] is True
        assert k.desk.counters.rejected < 10_000


async def test_an_id_is_free_the_moment_its_answer_is_sent() -> None:
    async with running_kernel(decode_s=1.0) as k:
        await k.connect().ask(request("a"))
        k.desk.cancel("a")
        assert len(k.desk.admission) == 0


async def test_a_flood_of_refused_requests_is_read_slowly() -> None:
    async with running_kernel(decode_s=0.001, queue_size=10_000) as k:
        flood, other = k.connect(), k.connect()
        began = trio.current_time()
        await flood.send(*(request(str(n), model_id="nobody") for n in range(6400)))
        for _ in range(6400):
            assert (await flood.receive())["code"] == 404
        assert trio.current_time() - began > 0.4
        began = trio.current_time()
        await other.send(*(request(f"job{n}", "a") for n in range(640)))
        for _ in range(640):
            await other.terminal()
        assert trio.current_time() - began < 0.7, "jobs are read at full speed: only their steps take time"
