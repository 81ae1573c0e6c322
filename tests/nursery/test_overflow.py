"""`overflow: drop_oldest`: a conversation that has become too long goes on without its beginning."""

from __future__ import annotations

from typing import Any

import pytest

from granville.testing.kernel import Client, request, running_kernel


async def end_of(client: Client, id: str, text: str, **fields: Any) -> dict[str, Any]:
    await client.send(request(id, text, session_id="s", max_tokens=10, **fields))
    return await client.terminal()


async def test_a_session_goes_on_without_its_oldest_turns() -> None:
    """Ten words a turn and ten an answer, in a context of seventy: there is room for sixty."""
    async with running_kernel(context_size=70) as k:
        client = k.connect()
        found = [await end_of(client, str(n), f"{n} " * 10, overflow="drop_oldest") for n in range(7)]
        usage = [result["usage"] for result in found]
        assert [each["prompt_tokens"] for each in usage] == [10, 30, 50, 30, 50, 30, 50]
        assert [each.get("dropped_turns") for each in usage] == [None, None, None, 4, None, 4, None]
        turns = k.desk.sessions.known("s")
        assert turns is not None
        assert [turn.content[0] for turn in turns.turns] == ["4", "4", "5", "5", "6", "6"]


@pytest.mark.parametrize("overflow", [None, "error"])
async def test_it_is_an_error_unless_it_is_asked_for_and_leaves_no_trace(overflow: str | None) -> None:
    async with running_kernel(context_size=70) as k:
        client = k.connect()
        for n in range(3):
            await end_of(client, str(n), f"{n} " * 10)
        failed = await end_of(client, "long", "x " * 25, overflow=overflow)
        assert (failed["code"], failed["error"]) == (413, "prompt_too_long")
        result = await end_of(client, "again", "x " * 25, overflow="drop_oldest")
        assert result["usage"] == {"prompt_tokens": 25, "cached_tokens": 0, "completion_tokens": 10, "dropped_turns": 6}


async def test_messages_are_shortened_but_for_the_system_message() -> None:
    async with running_kernel(context_size=70) as k:
        client = k.connect()
        told = [{"role": "system", "content": "be brief"}]
        for n in range(4):
            told += [{"role": "user", "content": f"{n} " * 10}, {"role": "assistant", "content": f"{n} " * 10}]
        messages = [*told, {"role": "user", "content": "and now"}]
        await client.send({"id": "a", "messages": messages, "overflow": "drop_oldest", "session_id": "s"})
        usage = (await client.terminal())["usage"]
        assert (usage["prompt_tokens"], usage["dropped_turns"]) == (24, 6)
        kept = k.desk.sessions.known("s")
        assert kept is not None
        assert [turn.content for turn in kept.turns] == [
            "be brief", "3 " * 10, "3 " * 10, "and now", "and now",
        ]  # fmt: skip


async def test_what_cannot_become_shorter_is_too_long() -> None:
    async with running_kernel(context_size=70) as k:
        client = k.connect()
        await end_of(client, "1", "a b c")
        failed = await end_of(client, "2", "x " * 80, overflow="drop_oldest")
        assert failed["code"] == 413
        assert (await end_of(client, "3", "d"))["usage"]["prompt_tokens"] == 7


async def test_who_cannot_do_it_or_asks_for_something_else_is_refused() -> None:
    async with running_kernel(messages=False) as k:
        client = k.connect()
        reply = await client.ask(request("a", overflow="drop_oldest"))
        assert (reply["code"], reply["message"]) == (422, "overflow: the model cannot do this")
        reply = await client.ask(request("b", overflow="drop_newest"))
        assert reply["code"] == 400
        assert reply["message"] == "overflow: expected null, error or drop_oldest, got 'drop_newest'"
        assert (await client.ask(request("c", overflow="error")))["status"] == "accepted"
