"""Requests that ask to be ranked: held for no longer than allowed, and never lost to a ranker."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing

from granville.nursery import ranking
from granville.scheduling.ranking import SAMPLES
from granville.testing.kernel import Client, Kernel, request, running_kernel
from granville.wire.messages import Class

CALIBRATED_S = 10.0


def unranked(id: str, text: str = "a deadline at five", **more: Any) -> dict[str, Any]:
    return request(id, text, ranked=True, **more)


async def ranker(kernel: Kernel) -> str:
    """The id of the model that ranks, once there is one."""
    await trio.sleep(CALIBRATED_S)
    model = status(kernel)["model"]
    assert isinstance(model, str)
    return model


def status(kernel: Kernel) -> dict[str, Any]:
    figures = kernel.desk.status()["ranking"]
    assert isinstance(figures, dict)
    return figures


async def ended(client: Client, message: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """The terminal message, and how long it took."""
    began = trio.current_time()
    assert await client.ask(message) == {"id": message["id"], "status": "accepted"}
    result = await client.terminal()
    return result, trio.current_time() - began


@pytest.mark.parametrize(
    ("text", "priority"),
    [
        ("this is a crisis now", "critical"),
        ("this has a deadline", "high"),
        ("this is a task", "normal"),
        ("do it someday please", "low"),
    ],
)
async def test_the_rank_comes_out_as_the_priority(text: str, priority: Class) -> None:
    async with running_kernel(scores=True, score_s=0.05) as k:
        assert await ranker(k) == "fake-0"
        client = k.connect()
        result, took = await ended(client, unranked("text", text))
        assert result["priority"] == priority
        assert result["tool_input_json"] == f'["{text}"]'
        assert took == pytest.approx(0.05)
        turns = [{"role": "user", "content": "a crisis"}, {"role": "assistant", "content": "someday"}]
        messages = [*turns, {"role": "user", "content": text}]
        result, _ = await ended(client, {"id": "messages", "messages": messages, "ranked": True})
        assert result["priority"] == priority
        assert status(k) == {"model": "fake-0", "ranked": 2, "late": 0, "unranked": 0, "last_ms": 50.0}


async def test_a_job_that_is_ranked_goes_where_its_class_belongs() -> None:
    async with running_kernel(scores=True, decode_s=0.1, rank_ms=500) as k:
        await ranker(k)
        client = k.connect()
        await client.send(request("runs", "a b c d e f", priority="critical"))
        await client.send(*(request(f"high{n}", "a", priority="high") for n in range(3)))
        await client.send(unranked("low", "one someday"), unranked("first", "a crisis"))
        ends = [(await client.terminal())["id"] for _ in range(6)]
        assert ends == ["runs", "first", "high0", "high1", "high2", "low"]


async def test_only_who_asks_is_ranked() -> None:
    async with running_kernel(scores=True) as k:
        await ranker(k)
        client = k.connect()
        for fields, priority in (
            ({"ranked": True, "priority": "low"}, "low"),
            ({"ranked": False}, "normal"),
            ({}, "normal"),
        ):
            result, _ = await ended(client, request("x", "a crisis", **fields))
            assert result["priority"] == priority
        assert status(k)["ranked"] == 0


async def test_a_model_of_type_ranker_is_asked_first() -> None:
    async with running_kernel(scores=True, types=["inference", "ranker"]) as k:
        assert await ranker(k) == "fake-1"
        result, _ = await ended(k.connect(), unranked("a"))
        assert (result["priority"], result["model_id"]) == ("high", "fake-0")


async def test_a_slow_ranker_costs_rank_ms_and_no_more() -> None:
    async with running_kernel(scores=True, score_s=0.4, rank_ms=250) as k:
        await trio.sleep(100)
        client = k.connect()
        result, took = await ended(client, unranked("late"))
        assert result["priority"] == "normal"
        assert 0.25 <= took < 0.9  # the step that the question is in ends first
        for n in range(20):
            await client.send(unranked(f"{n}"))
        assert {(await client.terminal())["priority"] for _ in range(20)} == {"normal"}
        assert status(k)["late"] == 21
        assert not len(k.desk.backlog)


async def test_many_at_once_are_ranked_as_far_as_time_allows() -> None:
    async with running_kernel(scores=True, score_s=0.1, rank_ms=250, slots=8) as k:
        await ranker(k)
        client = k.connect()
        await client.send(*(unranked(f"{n}") for n in range(6)))
        ended = [await client.terminal() for _ in range(6)]
        assert [message["priority"] for message in sorted(ended, key=lambda m: m["id"])] == ["high"] * 2 + [
            "normal"
        ] * 4
        assert status(k)["ranked"] == 2


async def test_a_busy_model_is_not_asked_about_samples_before_anybody_wants_ranks() -> None:
    async with running_kernel(scores=True, score_s=0.05, decode_s=1.0, slots=2) as k:
        words = "word " * 200
        await k.connect().send(request("busy", words, max_tokens=100), request("busy too", words, max_tokens=200))
        await trio.sleep(90)
        assert status(k)["model"] is None
        assert k.drivers[0].models[0].scored <= 1, "one at most had been asked before the jobs came"
        result, _ = await ended(k.connect(), unranked("first", "a crisis"))
        assert result["priority"] == "normal"
        await trio.sleep(2 * len(SAMPLES))
        assert len(k.desk.models[0].jobs()) == 1, "it is busy still"
        assert status(k)["model"] == "fake-0"


async def test_an_idle_model_learns_its_scores_before_anybody_asks() -> None:
    async with running_kernel(scores=True, score_s=0.05, decode_s=1.0) as k:
        await k.connect().send(request("busy", "a b c"))
        await trio.sleep(CALIBRATED_S)
        result, _ = await ended(k.connect(), unranked("first", "a crisis"))
        assert result["priority"] == "critical"


async def test_a_model_that_takes_too_long_for_a_sample_does_not_rank() -> None:
    async with running_kernel(scores=True, score_s=31.0) as k:
        await trio.sleep(100)
        assert k.drivers[0].models[0].scored <= 2
        assert status(k)["model"] is None


async def test_a_ranker_that_fails_at_it_is_not_asked() -> None:
    async with running_kernel(scores=True, score_fails=True) as k:
        await trio.sleep(CALIBRATED_S)
        result, took = await ended(k.connect(), unranked("a"))
        assert (result["priority"], took) == ("normal", 0)
        assert status(k) == {"model": None, "ranked": 0, "late": 0, "unranked": 1, "last_ms": None}


async def test_without_a_model_that_scores_a_request_is_normal_at_once() -> None:
    async with running_kernel() as k:
        result, took = await ended(k.connect(), unranked("a"))
        assert (result["priority"], took) == ("normal", 0)


async def test_ranking_is_off_with_no_time_for_it() -> None:
    async with running_kernel(scores=True, rank_ms=0) as k:
        await trio.sleep(CALIBRATED_S)
        assert k.drivers[0].steps == 0
        result, _ = await ended(k.connect(), unranked("a"))
        assert result["priority"] == "normal"


async def test_a_ranker_that_dies_loses_nothing_and_ranks_again_when_it_is_back() -> None:
    last_of_calibration = len(SAMPLES)
    async with running_kernel(scores=True, fault="raise", fault_after_steps=last_of_calibration + 1) as k:
        await ranker(k)
        client = k.connect()
        result, _ = await ended(client, unranked("lost", "a crisis", timeout_ms=60_000))
        assert result["priority"] == "normal"
        assert "error" not in result
        await ranker(k)
        result, _ = await ended(client, unranked("again", "a crisis"))
        assert result["priority"] == "critical"


async def test_text_that_cannot_be_redacted_is_not_shown_to_the_ranker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: object) -> str:
        raise ValueError("my secret text")

    async with running_kernel(scores=True) as k:
        await ranker(k)
        steps = k.drivers[0].steps
        monkeypatch.setattr(ranking, "text_to_rank", broken)
        with caplog.at_level(logging.DEBUG):
            result, _ = await ended(k.connect(), unranked("a", "my secret text"))
        assert result["priority"] == "normal"
        assert k.drivers[0].steps == steps + 1  # its answer's alone
        assert "ranking failed error=ValueError" in caplog.text
        assert "secret" not in caplog.text


async def test_a_job_that_ends_while_it_is_held_is_not_ranked() -> None:
    async with running_kernel(scores=True, score_s=0.1) as k:
        await ranker(k)
        client = k.connect()
        await client.send(unranked("gone"), unranked("stays"))
        await trio.testing.wait_all_tasks_blocked()
        assert k.desk.backlog.counts()["normal"] == 2
        await client.send({"op": "cancel", "id": "gone"})
        ends = {message["id"]: message for message in [await client.terminal() for _ in range(2)]}
        assert ends["gone"]["error"] == "cancelled"
        assert ends["stays"]["priority"] == "high"
        assert status(k)["ranked"] == 1


async def test_a_turn_is_held_by_its_session_and_by_its_ranking() -> None:
    async with running_kernel(scores=True, decode_s=1.0, rank_ms=2000, slots=2) as k:
        await ranker(k)
        client = k.connect()
        await client.send(request("first", "a b c", session_id="s"), unranked("second", "now someday", session_id="s"))
        ends = [await client.terminal() for _ in range(2)]
        assert [(end["id"], end["priority"]) for end in ends] == [("first", "normal"), ("second", "low")]
        assert ends[1]["usage"]["prompt_tokens"] > 5  # what was said before is in it


async def test_only_models_that_generate_rank() -> None:
    async with running_kernel(types=["embedding", "rerank"], scores=True) as k:
        await trio.sleep(CALIBRATED_S)
        assert status(k)["model"] is None
