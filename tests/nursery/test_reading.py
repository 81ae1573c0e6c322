"""Models that read, in a kernel: a value comes back, and nothing of it waits behind a neighbour's or is lost."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from granville.client.connection import serve_client
from granville.errors import BadRequest, Unsupported
from granville.testing.kernel import request, running_kernel
from granville.wire.messages import ModelType

TYPES: tuple[ModelType, ...] = ("inference", "embedding", "rerank")


def embed(id: str, *texts: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "model_type": "embedding", "documents": list(texts), **more}


def rerank(id: str, query: str, *documents: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "model_type": "rerank", "text": query, "documents": list(documents), **more}


async def test_each_request_goes_to_a_model_of_its_type() -> None:
    async with running_kernel(types=TYPES) as k:
        client = k.connect()
        await client.send(
            request("chat", "one two"),
            {"id": "one", "model_type": "embedding", "text": "a bc"},
            embed("list", "a bc", ""),
            rerank("rank", "sea and sand", "the sea", "sand and sea", "hills", priority="HIGH"),
        )
        ends = {(end := await client.terminal())["id"]: end for _ in range(4)}
    assert {id: end["model_id"] for id, end in ends.items()} == {
        "chat": "fake-0", "one": "fake-1", "list": "fake-1", "rank": "fake-2"
    }  # fmt: skip
    assert "output" not in ends["chat"]
    assert ends["one"] == {
        "id": "one", "model_id": "fake-1", "tool_id": "__embedding__", "tool_input_json": "[]", "priority": "normal",
        "finish_reason": "stop", "usage": {"prompt_tokens": 2, "cached_tokens": 0, "completion_tokens": 0},
        "output": [2.0, 4.0],
    }  # fmt: skip
    assert ends["list"]["output"] == [[2.0, 4.0], [0.0, 0.0]]
    assert (ends["rank"]["tool_id"], ends["rank"]["priority"]) == ("__rerank__", "high")
    assert ends["rank"]["output"] == [1.0, 3.0, 0.0]


async def test_reading_waits_in_the_backlog_like_all_work() -> None:
    """By class, within the bound, past its deadline, and until it is cancelled."""
    async with running_kernel(types=TYPES, decode_s=1.0, queue_size=3) as k:
        client = k.connect()
        await client.send(embed("runs", "a"))
        await trio.testing.wait_all_tasks_blocked()
        await client.send(
            embed("low", "a", priority="low"),
            embed("late", "a", timeout_ms=500),
            embed("high", "a", priority="high"),
            embed("full", "a"),
        )
        await client.send({"op": "cancel", "id": "low"})
        ends = {(end := await client.terminal())["id"]: end.get("code", "well") for _ in range(5)}
        assert list(ends.items()) == [("full", 429), ("low", 499), ("late", 408), ("runs", "well"), ("high", "well")]
        await client.send(embed("after", "a"))
        assert (await client.terminal())["output"] == [[1.0, 1.0]]


@pytest.mark.parametrize("fields", [{"session_id": "s"}, {"voice": "amy"}, {"grammar": "root ::= x"}])
async def test_what_a_reading_model_cannot_do_is_refused(fields: dict[str, Any]) -> None:
    async with running_kernel(types=TYPES) as k:
        refused = await k.connect().ask(embed("x", "a", **fields))
        assert (refused["code"], refused["message"].partition(":")[0]) == (422, next(iter(fields)))


async def test_a_text_over_the_context_and_a_job_that_fails_cost_no_other() -> None:
    async with running_kernel(
        types=TYPES, slots=3, decode_s=1.0, context_size=3, fault="fail_job", fault_word="bad"
    ) as k:
        client = k.connect()
        await client.send(embed("long", "a", "a b c"), rerank("ill", "a", "bad"), rerank("well", "a", "a"))
        ends = {(end := await client.terminal())["id"]: end for _ in range(3)}
    assert {id: end.get("code") for id, end in ends.items()} == {"long": 413, "ill": 502, "well": None}
    assert ends["well"]["output"] == [1.0]


async def test_a_stream_of_a_value_is_its_result() -> None:
    async with running_kernel(types=TYPES) as k:
        client = k.connect()
        await client.send(embed("x", "a", stream=True))
        assert [set(await client.receive()) & {"status", "delta", "output"} for _ in range(2)] == [
            {"status"},
            {"output"},
        ]


async def test_the_sdk_asks_for_values() -> None:
    async with running_kernel(types=TYPES) as k, serve_client(k.connect().stream) as client:
        assert await client.embed(["a bc", ""]) == [[2.0, 4.0], [0.0, 0.0]]
        assert await client.rerank("sea and sand", ["the sea", "hills"], model_id="fake-2") == [1.0, 0.0]
        with pytest.raises(Unsupported, match="fake-0"):
            await client.embed(["a"], model_id="fake-0")
        with pytest.raises(BadRequest, match=r"^documents"):
            await client.embed([])
