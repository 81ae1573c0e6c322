"""What is kept warm: read ahead in spare time, brought from disk, kept before others, without a trace in answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from granville_llama.binding import Context, Decoded
from granville_llama.engine import LlamaModel

from granville.hosting.interface import Failed, Generate, Message, Output, Tool, Warm
from tests.drivers.llama_jobs import GREEDY, Answers, job, load, load_with_cache, run, warm

SEA = "the sea is wide and the ship is old " * 6
SYSTEM = Message("system", SEA)
WEATHER = Tool("weather", "Weather in a city", {"type": "object", "properties": {"city": {"type": "string"}}})


@pytest.fixture
def model(noise: Path) -> Iterator[LlamaModel]:
    model = cast(LlamaModel, load(noise, context_size=512))
    yield model
    assert not model._jobs
    model.close()


def ask(id: str, text: str, *before: Message, session: str | None = None, tools: tuple[Tool, ...] = ()) -> Generate:
    messages = (*before, Message("user", text))
    return Generate(id, messages, 6, GREEDY, session=session, tools=tools, tool_choice="none" if tools else "auto")


def fresh(noise: Path, each: Generate) -> list[int]:
    model = load(noise, context_size=512)
    said = run(model, each)[each.id].tokens
    model.close()
    return said


def test_a_system_prompt_is_read_before_anyone_asks(model: LlamaModel, noise: Path) -> None:
    count, usage = warm(model, Warm("w", (SYSTEM,)))
    assert count == usage.prompt_tokens > len(SEA)
    assert usage.cached_tokens == 0
    for index, text in enumerate(("what?", "A longer question", "The third")):
        each = ask(f"j{index}", text, SYSTEM)
        answer = run(model, each)[each.id]
        assert answer.cached_tokens == count
        assert answer.tokens == fresh(noise, each)
    assert model.stats()["warm"] == 1
    assert model.stats()["warm_hits"] == 3


def test_the_same_again_is_read_from_the_cache(model: LlamaModel) -> None:
    count, _ = warm(model, Warm("w", (SYSTEM,)))
    again, usage = warm(model, Warm("again", (SYSTEM,)))
    assert again == usage.cached_tokens == count
    protected = model.stats()["kv_warm_bytes"]
    model.cancel("w")
    assert model.stats()["kv_warm_bytes"] == protected, "the other one keeps it"
    model.cancel("again")
    assert model.stats()["kv_warm_bytes"] == 0


def test_messages_that_end_with_a_question_are_read_to_the_answer(model: LlamaModel) -> None:
    each = ask("j", "what?", SYSTEM)
    count, usage = warm(model, Warm("w", each.messages))
    answer = run(model, each)["j"]
    assert count == usage.prompt_tokens
    assert answer.cached_tokens == count - 2, "the last is read again, and not alone"


def test_tools_are_part_of_the_beginning(noise: Path) -> None:
    model = load(noise, context_size=1024)
    count, _ = warm(model, Warm("w", (SYSTEM,), tools=(WEATHER,), tool_choice="auto"))
    told, _ = warm(model, Warm("told", (SYSTEM,)))
    assert count > told + 50
    each = Generate("j", (SYSTEM, Message("user", "go")), 6, GREEDY, tools=(WEATHER,))
    assert run(model, each)["j"].cached_tokens == count
    model.close()


def test_what_makes_no_prompt_is_told(model: LlamaModel) -> None:
    for wish, error, text in (
        (Warm("w", (Message("system", SEA * 20),)), "prompt_too_long", "tokens and the context is 512"),
        (Warm("w", (Message("no role", "x"),)), "bad_request", "a role is a word"),
        (Warm("w", (SYSTEM,), tools=(WEATHER, WEATHER)), "bad_request", "two are named"),
    ):
        model.submit(wish)
        (event,) = model.step(None)
        assert isinstance(event, Failed)
        assert event.error == error
        assert text in event.message


def test_a_job_that_begins_alike_takes_over_what_is_read(model: LlamaModel, noise: Path) -> None:
    model.submit(Warm("w", (SYSTEM,)))
    model._pacer.spare_piece = lambda context: 32  # type: ignore[method-assign]
    for _ in range(4):
        assert model.step(None) == []
    each = ask("j", "what?", SYSTEM)
    model.submit(each)
    answers, kept = Answers(), 0.0
    while not answers.ended("j") or not kept:
        for event in model.step(None):
            if isinstance(event, Output):
                (kept,) = cast(list[float], event.value)
                assert event.usage.cached_tokens > event.usage.prompt_tokens - 4 * 32 - 2, "the job has read the rest"
            else:
                answers.take([event])
    assert answers["j"].cached_tokens == 4 * 32
    assert answers["j"].tokens == fresh(noise, each)
    assert kept > len(SEA)


def test_jobs_have_every_slot_and_go_first(model: LlamaModel, noise: Path) -> None:
    """More of what is to be read than there are slots, and jobs for all of them."""
    model._pacer.spare_piece = lambda context: 16  # type: ignore[method-assign]
    wishes = [Warm(f"w{index}", (Message("system", f"{index} {SEA}"),)) for index in range(6)]
    for wish in wishes:
        model.submit(wish)
    for _ in range(9):
        model.step(None)
    jobs = [job(f"j{index}", f"another {index} altogether", 12, urgency=2) for index in range(4)]
    for each in jobs:
        model.submit(each)
    answers = Answers()
    warm_now: dict[str, float] = {}
    for _ in range(400):
        for event in model.step(None):
            if isinstance(event, Output):
                assert answers.ended("j0", "j1", "j2", "j3"), "it was read beside streams of a higher class"
                (warm_now[event.id],) = cast(list[float], event.value)
            else:
                answers.take([event])
    assert {each.id: answers[each.id].tokens for each in jobs} == {each.id: fresh(noise, each) for each in jobs}
    assert sorted(warm_now) == [wish.id for wish in wishes]
    assert min(warm_now.values()) > len(SEA)


def test_beside_streams_of_its_own_class_it_is_read_at_their_pace(model: LlamaModel) -> None:
    model.submit(job("stream", "x", 300, urgency=2))
    while not model._jobs["stream"].decoding:
        model.step(0.0)
    model.submit(Warm("low", (Message("system", "B" + SEA),)))
    model.submit(Warm("w", (SYSTEM,), urgency=2))
    order: list[str] = []
    while "w" not in order:
        order += [event.id for event in model.step(0.0)]
    assert order.count("stream") >= 5, "a piece of the least size between two decodes"
    model.cancel("stream")
    assert [event.id for _ in range(50) for event in model.step(0.0)] == ["low"]


def test_an_interrupt_costs_a_piece_and_no_more(
    model: LlamaModel, noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Context.decode
    calls = 0

    def disturbed(context: Context) -> Decoded:
        nonlocal calls
        calls += 1
        if calls % 2:
            context.interrupt()
        return decode(context)

    monkeypatch.setattr(Context, "decode", disturbed)
    count, _ = warm(model, Warm("w", (SYSTEM,)))
    monkeypatch.setattr(Context, "decode", decode)
    each = ask("j", "what?", SYSTEM)
    answer = run(model, each)["j"]
    assert answer.cached_tokens == count
    assert answer.tokens == fresh(noise, each)


def test_what_is_warm_stays_when_room_is_needed(noise: Path) -> None:
    """Others come and go; without protection this one, the least used, would be gone."""
    for is_kept in (True, False):
        model = cast(LlamaModel, load_with_cache(noise, kv_ram_bytes=400_000))
        wish = Warm("w", (SYSTEM,))
        count, _ = warm(model, wish)
        if not is_kept:
            model.cancel("w")
        run(model, *(job(f"j{index}", f"{index} {SEA}", 2) for index in range(24)))  # on every slot
        cached = run(model, ask("j", "what?", SYSTEM))["j"].cached_tokens
        assert cached == (count if is_kept else 0)
        model.close()


def test_newer_ones_have_the_room_of_the_oldest(noise: Path) -> None:
    model = cast(LlamaModel, load_with_cache(noise, kv_ram_bytes=400_000))
    store = model._seats.store
    for index in range(8):
        count, _ = warm(model, Warm(f"w{index}", (Message("system", f"{index} {SEA}"),)))
        assert count
        assert 0 < store.warm_bytes <= 200_000
    assert len(store._warm) < 8
    newest = list(model._warming._warm.values())[-1]
    assert newest.saved in store._warm
    model.limit_cache(0)
    assert (store.warm_bytes, store.ram_bytes) == (0, 0)
    assert warm(model, Warm("none", (SYSTEM,)))[0] == 0, "nothing can be kept"
    model.close()


def test_parked_states_go_after_what_is_warm(noise: Path) -> None:
    model = cast(LlamaModel, load_with_cache(noise, kv_ram_bytes=400_000))
    store = model._seats.store
    warm(model, Warm("w", (SYSTEM,)))
    model.submit(job("parked", SEA, 12))
    while not model._jobs["parked"].decoding:
        model.step(None)
    model.park("parked")
    model.step(None)
    model.limit_cache(store._parked_bytes + 1000)
    assert store._parked_bytes > 0
    assert store.warm_bytes == 0
    model.cancel("parked")
    model.close()


def talk(model: LlamaModel, turns: int = 2) -> tuple[Message, ...]:
    history: tuple[Message, ...] = (SYSTEM,)
    for index in range(turns):
        each = ask(f"t{index}", f"question {index}", *history, session="talk")
        answer = run(model, each)[each.id]
        history = (*each.messages, Message("assistant", answer.text, tuple(answer.tokens)))
    return history


def test_a_session_is_brought_from_disk(noise: Path, tmp_path: Path) -> None:
    model = cast(LlamaModel, load_with_cache(noise, kv_dir=tmp_path / "kv"))
    history = talk(model)
    expected = run(model, ask("next", "and then?", *history, session="talk"))["next"]
    model.close()
    model = cast(LlamaModel, load_with_cache(noise, kv_dir=tmp_path / "kv"))
    # Its last turn is on disk as well, and nothing else has been computed there.
    history = (*history, Message("user", "and then?"), Message("assistant", expected.text, tuple(expected.tokens)))
    assert model.stats()["kv_ram_bytes"] == 0
    count, usage = warm(model, Warm("w", history, session="talk"))
    assert usage.cached_tokens == usage.prompt_tokens, "nothing is read"
    assert usage.prompt_tokens - 12 < count < usage.prompt_tokens, (
        "the last token that it said, and marks, are not there"
    )
    assert 0 < int(model.stats()["kv_warm_bytes"]) <= int(model.stats()["kv_ram_bytes"])
    answer = run(model, ask("later", "go on", *history, session="talk"))["later"]
    assert answer.cached_tokens == count
    assert model.stats()["warm_hits"] == 1
    assert model.stats()["kv_warm_bytes"] == 0, "its turn has used it"
    model.close()


def test_a_session_is_kept_as_its_last_turn_left_it_tools_and_all(noise: Path) -> None:
    model = cast(LlamaModel, load(noise, context_size=1024))
    each = Generate("t", (Message("user", "go"),), 6, GREEDY, session="talk", tools=(WEATHER,), tool_choice="weather")
    answer = run(model, each)["t"]
    history = (*each.messages, Message("assistant", answer.text, tuple(answer.tokens)))
    count, usage = warm(model, Warm("w", history, session="talk"))
    assert count > usage.prompt_tokens, "the tools are in it"
    assert usage.cached_tokens == usage.prompt_tokens, "nothing is read"
    next_turn = replace(each, id="next", messages=(*history, Message("user", "on")))
    assert run(model, next_turn)["next"].cached_tokens == count
    model.close()


def test_a_session_without_a_state_is_read_again(noise: Path, tmp_path: Path) -> None:
    """The next turn says what it would have said without."""
    model = cast(LlamaModel, load_with_cache(noise, kv_dir=tmp_path / "kv"))
    history = talk(model)
    model.close()
    said = []
    for is_warm in (True, False):
        model = cast(LlamaModel, load_with_cache(noise))
        if is_warm:
            count, usage = warm(model, Warm("w", history, session="talk"))
            assert count == usage.prompt_tokens
            assert usage.cached_tokens == 0
        answer = run(model, ask("later", "go on", *history, session="talk"))["later"]
        assert answer.cached_tokens == (count if is_warm else 0)
        said.append(answer.tokens)
        model.close()
    assert said[0] == said[1]


def test_a_file_that_is_damaged_is_read_as_words(noise: Path, tmp_path: Path) -> None:
    model = cast(LlamaModel, load_with_cache(noise, kv_dir=tmp_path / "kv"))
    history = talk(model)
    model.close()
    for path in (tmp_path / "kv").glob("*.kv"):
        data = bytearray(path.read_bytes())
        data[-40] ^= 1
        path.write_bytes(data)
    model = cast(LlamaModel, load_with_cache(noise, kv_dir=tmp_path / "kv"))
    count, usage = warm(model, Warm("w", history, session="talk"))
    assert count == usage.prompt_tokens
    assert usage.cached_tokens == 0
    model.close()


def test_a_turn_that_comes_first_ends_the_wish(model: LlamaModel) -> None:
    history = talk(model)
    model.submit(Warm("w", history, session="talk"))
    model.submit(ask("j", "go on", *history, session="talk"))
    events = model.step(None)
    assert [event.value for event in events if isinstance(event, Output)] == [[0.0]]
    model.cancel("j")
