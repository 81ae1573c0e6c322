"""The engine's mechanics on tiny models: what each job says is its own, whatever its neighbours do."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from granville_llama.binding import Context, Decoded, State
from granville_llama.engine import LlamaModel

from granville.hosting.interface import DriverError, Failed, Generate, Message, Model, Parked, Sampling
from tests.drivers import tiny_gguf
from tests.drivers.llama_jobs import Answer, Answers, job, load, run

TEMPLATE_TOKENS = 20
"""ChatML around one user turn, with the BOS token."""


@pytest.fixture(scope="module")
def model(noise: Path) -> Iterator[LlamaModel]:
    model = load(noise, context_size=512)
    yield cast(LlamaModel, model)
    model.close()


@pytest.fixture(autouse=True)
def nothing_left_over(model: LlamaModel) -> Iterator[None]:
    yield
    assert not model._jobs
    assert model._seats.on_slots == [None] * model.slots


def alone(model: Model, jobs: list[Generate]) -> dict[str, Answer]:
    return {each.id: run(model, each)[each.id] for each in jobs}


def mixed_jobs(count: int) -> list[Generate]:
    """Prompts of 1 to about 300 tokens, answers of 5 to 24, greedy and sampled."""
    return [
        job(
            f"j{index}",
            "the sea " * (index * 7 % 40),
            5 + index * 5 % 20,
            Sampling(temperature=index % 2, seed=index),
        )
        for index in range(count)
    ]


def test_jobs_join_and_leave_and_say_what_they_say_alone(model: LlamaModel) -> None:
    jobs = mixed_jobs(11)
    assert run(model, *jobs) == alone(model, jobs)


@pytest.mark.parametrize("prefill_ms", [0.0, 1.0, 50.0])
def test_the_size_of_prefill_pieces_does_not_show(model: LlamaModel, prefill_ms: float) -> None:
    jobs = mixed_jobs(6)
    assert run(model, *jobs, prefill_ms=prefill_ms) == alone(model, jobs)


def test_a_seed_decides_and_without_one_it_is_drawn(model: LlamaModel) -> None:
    def says(seed: int | None) -> list[int]:
        return run(model, job("x", max_tokens=30, sampling=Sampling(temperature=2, seed=seed)))["x"].tokens

    assert says(1) == says(1)
    assert says(1) != says(2)
    assert says(None) != says(None)


def test_samplers_do_their_work(model: LlamaModel) -> None:
    def says(**sampling: float) -> list[int]:
        chosen = Sampling(**({"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 7} | sampling))  # type: ignore[arg-type]  # top_k and seed are whole numbers
        return run(model, job("x", max_tokens=30, sampling=chosen))["x"].tokens

    greedy = says(temperature=0)
    assert says() != greedy
    assert says(top_k=1) == says(top_p=1e-6) == says(min_p=1.0) == greedy
    assert len(set(greedy)) < len(greedy)
    unrepeated = says(temperature=0, repeat_penalty=50.0)
    assert len(set(unrepeated)) == len(unrepeated)
    assert not set(unrepeated) & set(tiny_gguf.tokens("hello")), "the prompt counts too"


def test_parked_jobs_go_on_where_they_stopped(model: LlamaModel) -> None:
    jobs = mixed_jobs(4)

    def park_and_resume(step: int, answers: Answers) -> None:
        for each in jobs:
            if answers.ended(each.id):
                continue
            if step % 3 == 0:
                model.park(each.id)
            elif step % 3 == 1:
                assert answers[each.id].parked == step // 3 + 1
                model.resume(each.id)

    answers = run(model, *jobs, prefill_ms=0.0, each_step=park_and_resume)
    assert {id: answer.tokens for id, answer in answers.items()} == {
        id: answer.tokens for id, answer in alone(model, jobs).items()
    }


def test_a_parked_job_gives_its_slot_away_and_can_be_forgotten(model: LlamaModel) -> None:
    for index in range(model.slots):
        model.submit(job(f"j{index}", max_tokens=200))
    for _ in range(6):
        model.step(None)
    model.park("j1")
    model.submit(job("late", max_tokens=3))
    answers = Answers()
    answers.take(model.step(None))
    assert answers["j1"].parked == 1
    while not answers.ended("late"):
        answers.take(model.step(None))
    assert not answers["j1"].tokens
    for index in range(model.slots):
        model.cancel(f"j{index}")
    with pytest.raises(DriverError, match="j1"):
        model.resume("j1")


def test_cancelled_jobs_are_silent_and_their_neighbours_unmoved(model: LlamaModel) -> None:
    expected = alone(model, [job("stays", "stay", 20)])

    def cancel(step: int, answers: Answers) -> None:
        if step == 5:
            assert answers["goes"].tokens
            model.park("goes")
            model.cancel("goes")
            model.cancel("unread")
            model.cancel("nobody")
            model.submit(job("comes", "come", 4))

    model.submit(job("goes", "go", 400))
    model.submit(job("unread", "nothing of it is read yet" * 15, 5, urgency=3))
    answers = run(model, job("stays", "stay", 20), prefill_ms=0.0, each_step=cancel)
    assert answers["stays"] == expected["stays"]
    assert not answers["goes"].parked
    assert answers["goes"].end is None
    assert len(answers["comes"].tokens) == 4


@pytest.mark.parametrize("prefill_ms", [None, 0.0])
def test_interrupted_batches_are_computed_again(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch, prefill_ms: float | None
) -> None:
    jobs = mixed_jobs(6)
    expected = alone(model, jobs)
    codes = interrupt_decodes(monkeypatch, model, every=3)
    assert run(model, *jobs, prefill_ms=prefill_ms) == expected
    assert codes.count(Decoded.ABORTED) > 10


def test_a_prefill_that_is_interrupted_most_of_the_time_gets_through(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = interrupt_decodes(monkeypatch, model, longer_than=20)
    assert len(run(model, job("x", "a long prompt " * 20, 3))["x"].tokens) == 3
    assert codes[:4] == [Decoded.ABORTED] * 3 + [Decoded.OK], "128, 64, 32, then 16 tokens a piece"


def test_the_next_step_clears_an_interrupt(model: LlamaModel) -> None:
    model.submit(job("x", max_tokens=1))
    model.interrupt()
    answers = Answers()
    answers.take(model.step(None))
    assert answers.ended("x")


def interrupt_decodes(
    monkeypatch: pytest.MonkeyPatch, model: LlamaModel, *, every: int = 1, longer_than: int = 0
) -> list[Decoded]:
    """As another thread would just after the backend was called, so that the backend's own callback sees it."""
    codes: list[Decoded] = []
    decode = Context.decode

    def interrupted(context: Context) -> Decoded:
        if len(codes) % every == every - 1 and context._size > longer_than:
            model.interrupt()
        codes.append(decode(context))
        return codes[-1]

    monkeypatch.setattr(Context, "decode", interrupted)
    return codes


def test_streams_stay_beside_each_other(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(4):
        model.submit(job(f"j{index}", max_tokens=100))
    while not all(sequence.decoding for sequence in model._jobs.values()):
        model.step(None)
    saved: list[int] = []
    save = Context.save

    def counted(context: Context, slot: int) -> State | None:
        saved.append(slot)
        return save(context, slot)

    monkeypatch.setattr(Context, "save", counted)
    model.cancel("j1")
    model.submit(job("quick", "the next one takes the free place", 100))
    while not model._jobs["quick"].decoding:
        model.step(None)
    model.step(None)
    assert (model._jobs["quick"].slot, saved) == (1, []), "nothing was copied"
    model.cancel("j0")
    model.cancel("j2")
    model.step(None)
    assert sorted(sequence.slot for sequence in model._jobs.values()) == [0, 1]
    assert saved == [3], "one copy: the highest to the lowest hole"
    model.submit(job("slow", "a long prompt " * 30, 5))
    model.cancel("quick")
    for _ in range(4):
        model.step(0.0)
    assert model._jobs["j3"].slot == 0
    for id in ("j3", "slow"):
        model.cancel(id)


def test_streams_go_on_while_a_neighbour_prefills(model: LlamaModel) -> None:
    def stream_tokens_before(urgency: int) -> int:
        """How many tokens a stream got until its neighbour's prompt of 300 tokens was read."""
        model.submit(job("stream", max_tokens=200, urgency=1))
        answers = Answers()
        while "stream" not in answers or len(answers["stream"].tokens) < 2:
            answers.take(model.step(0.0))
        model.submit(job("late", "x" * (300 - TEMPLATE_TOKENS), 1, urgency=urgency))
        before = len(answers["stream"].tokens)
        while not answers.ended("late"):
            answers.take(model.step(0.0))
        model.cancel("stream")
        return len(answers["stream"].tokens) - before

    assert stream_tokens_before(urgency=1) == 300 // 8
    assert stream_tokens_before(urgency=0) <= 1, "a critical job is not held back for others"


def test_the_more_urgent_prompt_is_read_first(model: LlamaModel) -> None:
    for id, urgency in (("low", 3), ("high", 1), ("normal", 2)):
        model.submit(job(id, id * 60, 1, urgency=urgency))
    answers = Answers()
    while not answers.ended("low"):
        answers.take(model.step(None))
    assert list(answers) == ["high", "normal", "low"]


def test_short_prompts_are_read_together(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cast(LlamaModel, load(noise))
    codes = interrupt_decodes(monkeypatch, model, longer_than=10_000)
    run(model, *(job(f"j{index}", "hello", 1) for index in range(4)))
    assert len(codes) == 1


def test_the_context_ends_an_answer(noise: Path) -> None:
    model = load(noise, context_size=64)
    answer = run(model, job("x", "hello", 1000))["x"]
    assert answer.reason == "length"
    assert len(answer.tokens) == 64 - 25
    model.close()


def test_a_prompt_needs_room_for_a_token(model: LlamaModel) -> None:
    fits = 512 - 1 - TEMPLATE_TOKENS
    answers = run(model, job("fits", "x" * fits), job("over", "x" * (fits + 1)))
    assert (answers["fits"].reason, len(answers["fits"].tokens)) == ("length", 1)
    end = answers["over"].end
    assert isinstance(end, Failed)
    assert end.error == "prompt_too_long"
    assert "512 tokens" in end.message
    assert "context 512" in end.message


def test_max_tokens_below_one_is_refused(model: LlamaModel) -> None:
    end = run(model, job("x", max_tokens=0))["x"].end
    assert isinstance(end, Failed)
    assert (end.error, "max_tokens" in end.message) == ("bad_request", True)


def test_more_jobs_than_slots_and_ids_twice_are_the_callers_fault(model: LlamaModel) -> None:
    for index in range(model.slots):
        model.submit(job(f"j{index}"))
    with pytest.raises(DriverError, match="slots"):
        model.submit(job("one more"))
    model.cancel("j0")
    with pytest.raises(DriverError, match="j1"):
        model.submit(job("j1"))
    for index in range(model.slots):
        model.cancel(f"j{index}")


def test_only_the_job_at_fault_fails(model: LlamaModel) -> None:
    jobs = [job("a", "first", 12), job("bad", "second", 12), job("c", "third", 12)]
    expected = alone(model, jobs)

    def spoil(step: int, answers: Answers) -> None:
        if "bad" in answers and len(answers["bad"].tokens) == 4 and answers["bad"].end is None:
            model._jobs["bad"].tokens[-1] = 10**6  # no such token: llama.cpp refuses the batch

    answers = run(model, *jobs, each_step=spoil)
    end = answers["bad"].end
    assert isinstance(end, Failed)
    assert end.error == "driver_failed"
    assert [answers[id] for id in ("a", "c")] == [expected[id] for id in ("a", "c")]


def test_a_backend_that_fails_loses_the_model(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(noise)
    monkeypatch.setattr(Context, "decode", lambda context: Decoded.FAILED)
    model.submit(job("x"))
    with pytest.raises(DriverError, match="loaded again"):
        model.step(None)
    model.close()


def test_a_state_that_cannot_be_restored_is_computed_anew(model: LlamaModel) -> None:
    model.submit(job("x", max_tokens=10))
    answers = Answers()
    for _ in range(4):
        answers.take(model.step(None))
    model.park("x")
    parked = model._seats.store._parked
    parked["x"] = (ctypes.c_uint8 * (len(parked["x"]) // 2))(*parked["x"][: len(parked["x"]) // 2])
    model.resume("x")
    while not answers.ended("x"):
        answers.take(model.step(None))
    assert answers["x"].tokens == run(model, job("x", max_tokens=10))["x"].tokens


def test_parking_says_so_once_and_strangers_are_ignored(model: LlamaModel) -> None:
    model.submit(job("x"))
    model.park("x")
    model.park("x")
    model.park("nobody")
    assert model.step(None) == [Parked("x")]
    assert model.step(None) == []
    model.cancel("x")


def test_a_model_without_a_template_completes_raw(models: Path) -> None:
    path = tiny_gguf.alphabet(models / "raw.gguf", tiny_gguf.follows("abcdefgh", tiny_gguf.EOS), template=None)
    model = load(path)
    assert not model.capabilities.messages
    answers = run(
        model,
        job("raw", "abc"),
        job("control", "<|im_end|>", 2),
        job("empty", "", 2),
        Generate("two", (Message("user", "a"), Message("user", "b"))),
    )
    assert answers["raw"].text == "defgh"
    assert answers["raw"].end is not None
    assert answers["control"].text == "zz"
    assert answers["empty"].text == "zz"
    end = answers["two"].end
    assert isinstance(end, Failed)
    assert (end.error, "template" in end.message) == ("unsupported", True)
    model.close()


def test_what_a_slot_holds_of_a_prompt_is_not_read_again(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    decode = Context.decode

    def counted(context: Context) -> Decoded:
        read.append(context._size)
        return decode(context)

    monkeypatch.setattr(Context, "decode", counted)
    model = load(noise, context_size=512)
    first = run(model, job("a", "the sea " * 20 + "is wide", 4))["a"]
    tokens_read = sum(read)
    read.clear()
    second = run(model, job("b", "the sea " * 20 + "is deep", 4))["b"]
    assert first.cached_tokens == 0
    assert second.cached_tokens > 100
    assert sum(read) == tokens_read - second.cached_tokens
    assert run(model, job("c", "the sea " * 20 + "is deep", 4))["c"].tokens == second.tokens
    fresh = load(noise, context_size=512)
    assert run(fresh, job("b", "the sea " * 20 + "is deep", 4))["b"].tokens == second.tokens
    model.close()
    fresh.close()


def test_a_prompt_goes_to_the_slot_that_holds_most_of_it(noise: Path) -> None:
    model = load(noise, context_size=512)
    run(model, job("sea", "the sea " * 10, 4), job("hill", "the hill " * 10, 4))
    for name in ("hill", "sea", "hill"):
        assert run(model, job(name, f"the {name} " * 10 + "again", 4))[name].cached_tokens > 60
    model.close()


def test_an_answer_is_not_left_over(model: LlamaModel) -> None:
    first = run(model, job("a", "tell me more", 20))["a"]
    again = run(model, job("b", "tell me more", 20))["b"]
    assert again.tokens == first.tokens
    assert again.cached_tokens <= TEMPLATE_TOKENS + len("tell me more")
