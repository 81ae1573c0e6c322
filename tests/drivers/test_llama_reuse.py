"""What is read once is not read again: neighbours, sessions, restarts, and jobs whose state was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from granville_llama import LlamaDriver
from granville_llama.binding import Context, Decoded
from granville_llama.engine import LlamaModel
from granville_llama.kvdisk import Worker
from granville_llama.kvfiles import KvFiles

from granville.hosting.interface import Finished, Generate, Message, ModelSpec, Sampling
from tests.drivers.llama_jobs import GREEDY, Answer, Answers, job, load, load_with_cache, run

SEA = "the sea is wide and the ship is old " * 6


@pytest.fixture
def model(noise: Path) -> Iterator[LlamaModel]:
    model = cast(LlamaModel, load(noise, context_size=512))
    yield model
    assert not model._jobs
    model.close()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of every batch that was computed."""
    sizes: list[int] = []
    decode = Context.decode

    def counted(context: Context) -> Decoded:
        sizes.append(context._size)
        return decode(context)

    monkeypatch.setattr(Context, "decode", counted)
    return sizes


def fresh(noise: Path, each: Generate) -> list[int]:
    """What a model that has seen nothing else says."""
    model = load(noise, context_size=512)
    said = run(model, each)[each.id].tokens
    model.close()
    return said


def undisturbed(noise: Path, history: list[Message], text: str, second: Generate, max_tokens: int = 6) -> list[int]:
    """What the second turn of a conversation says that nothing has come between."""
    model = cast(LlamaModel, load(noise, context_size=512))
    talk(model, history, text, max_tokens=max_tokens)
    said = run(model, second)[second.id].tokens
    model.close()
    return said


def turn(id: str, history: list[Message], text: str, max_tokens: int = 6, **more: object) -> Generate:
    messages = (*history, Message("user", text))
    return Generate(id, messages, max_tokens, GREEDY, session="talk", **more)  # type: ignore[arg-type]


def talk(model: LlamaModel, history: list[Message], text: str, **more: object) -> tuple[Answer, list[Message]]:
    answer = run(model, turn("turn", history, text, **more))["turn"]  # type: ignore[arg-type]
    said = Message("assistant", answer.text, tuple(answer.tokens))
    return answer, [*history, Message("user", text), said]


def usage(answer: Answer) -> tuple[int, int]:
    assert isinstance(answer.end, Finished)
    return answer.end.usage.prompt_tokens, answer.end.usage.completion_tokens


def test_neighbours_read_what_they_share_once(model: LlamaModel, noise: Path, read: list[int]) -> None:
    jobs = [
        job(f"j{index}", f"{SEA}{index} what next", 5, Sampling(temperature=index % 2, seed=1)) for index in range(4)
    ]
    answers = run(model, *jobs)
    shared = answers["j1"].cached_tokens
    assert shared > len(SEA)
    assert [answers[f"j{index}"].cached_tokens for index in range(4)] == [0, shared, shared, shared]
    prompts = sum(usage(answer)[0] for answer in answers.values())
    decoded = sum(usage(answer)[1] - 1 for answer in answers.values())
    assert sum(read) == prompts - 3 * shared + decoded
    for each in jobs:
        assert answers[each.id].tokens == fresh(noise, each)


def test_who_waits_for_a_neighbour_that_leaves_reads_it_itself(model: LlamaModel, noise: Path) -> None:
    jobs = [job(f"j{index}", f"{SEA}{index} what next", 5) for index in range(4)]

    def leave(step: int, answers: Answers) -> None:
        if step == 0:
            model.cancel("first")
        elif step == 2:
            model.park("j0")
        elif step == 6:
            model.resume("j0")

    model.submit(job("first", f"{SEA} and more", 5))
    answers = Answers()
    for each in jobs[:3]:
        model.submit(each)
    for step in range(60):
        answers.take(model.step(0.0))
        leave(step, answers)
    assert {each.id: answers[each.id].tokens for each in jobs[:3]} == {each.id: fresh(noise, each) for each in jobs[:3]}


def test_an_urgent_job_lends_its_urgency_to_whom_it_waits_for(model: LlamaModel) -> None:
    model.submit(job("stream", "x", 300, urgency=1))
    while not model._jobs["stream"].decoding:
        model.step(0.0)
    model.submit(job("slow", f"{SEA} slowly", 5, urgency=3))
    model.step(0.0)
    model.submit(job("urgent", f"{SEA} at once", 1, urgency=0))
    answers = Answers()
    while not answers.ended("urgent"):
        answers.take(model.step(0.0))
    assert answers["urgent"].cached_tokens > len(SEA)
    assert len(answers.get("stream", Answer()).tokens) <= 3, "nothing was throttled for it"
    assert model._jobs["slow"].urgency == 3, "nobody waits for it any more"
    for id in ("stream", "slow"):
        model.cancel(id)


def test_a_later_turn_reads_its_new_tokens_only(model: LlamaModel, read: list[int]) -> None:
    history: list[Message] = [Message("system", "be brief")]
    held = 0
    for index in range(4):
        answer, history = talk(model, history, f"question {index}")
        prompt_tokens, completion_tokens = usage(answer)
        assert answer.cached_tokens == held
        assert sum(read) == prompt_tokens - held + completion_tokens - 1
        held = prompt_tokens + completion_tokens - 1
        read.clear()
        for other in range(6):  # others use every slot meanwhile
            run(model, job("other", f"{other} something else altogether " * 5, 2))
        read.clear()


def test_what_a_session_generated_is_not_for_others(model: LlamaModel, noise: Path) -> None:
    _, history = talk(model, [], "tell me of the sea", max_tokens=40)
    same = Generate("same", (*history, Message("user", "and then")), 12, GREEDY)
    answer = run(model, same)["same"]
    assert answer.cached_tokens < len("tell me of the sea") + 25
    assert answer.tokens == fresh(noise, same)


def test_a_session_can_start_afresh_or_with_another_history(model: LlamaModel) -> None:
    _, history = talk(model, [], SEA)
    again, _ = talk(model, history, "next", reset_cache=True)
    assert again.cached_tokens == 0
    changed = [history[0], Message("assistant", "something else"), Message("user", "no")]
    other, _ = talk(model, changed, "next")
    assert len(SEA) < other.cached_tokens < usage(other)[0] - len("something else")


def test_a_turn_that_was_cancelled_leaves_no_trace(model: LlamaModel) -> None:
    answer, history = talk(model, [], "one")
    held = sum(usage(answer)) - 1
    model.submit(turn("gone", history, "two", 50))
    for _ in range(5):
        model.step(None)
    model.cancel("gone")
    for other in range(6):
        run(model, job("other", f"{other} something else altogether " * 5, 2))
    answer, _ = talk(model, history, "three")
    assert answer.cached_tokens == held


def test_sessions_answer_from_disk_after_a_restart(noise: Path, tmp_path: Path) -> None:
    def start(fingerprint: str = "a file") -> LlamaModel:
        kv_dir = tmp_path / "kv"
        return cast(LlamaModel, load_with_cache(noise, kv_dir=kv_dir, fingerprint=fingerprint))

    model = start()
    answer, history = talk(model, [Message("system", SEA)], "one")
    held = sum(usage(answer)) - 1
    model.close()
    expected = undisturbed(noise, [Message("system", SEA)], "one", turn("next", history, "two", 12))

    model = start()
    again = run(model, turn("next", history, "two", 12))["next"]
    assert (again.cached_tokens, again.tokens) == (held, expected)
    assert run(model, job("other", "hello"))["other"].end is not None
    model.close()

    model = start("another file")
    assert run(model, turn("next", history, "two", 2))["next"].cached_tokens == 0
    model.close()

    for path in (tmp_path / "kv").glob("*.kv"):
        data = bytearray(path.read_bytes())
        data[-2000] ^= 1
        path.write_bytes(data)
    model = start()
    corrupt = run(model, turn("next", history, "two", 12))["next"]
    assert (corrupt.cached_tokens, len(corrupt.tokens)) == (0, 12)
    assert model.stats()["kv_files"] == 1, "the corrupt ones are gone, and the turn's own is written"
    model.close()


def test_two_models_on_one_folder(noise: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = (cast(LlamaModel, load_with_cache(noise, kv_dir=tmp_path)) for _ in range(2))
    assert "in use by another process" in caplog.text
    for model in (first, second):
        answer, history = talk(model, [], SEA)
        again, _ = talk(model, history, "next")
        assert again.cached_tokens == sum(usage(answer)) - 1
        model.close()


def test_cancel_and_park_while_a_state_comes_from_disk(
    noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> LlamaModel:
        return cast(LlamaModel, load_with_cache(noise, kv_dir=tmp_path))

    model = start()
    answer, history = talk(model, [], SEA)
    model.close()
    expected = undisturbed(noise, [], SEA, turn("next", history, "two", 12))

    do = Worker.do
    held: list[Callable[[], object]] = []

    def held_back(worker: Worker, work: Callable[[], object], then: Callable[[object], None]) -> Future[object]:
        """Reads come when they are let."""
        future: Future[object] = Future()

        def arrived(result: object) -> None:
            then(result)
            future.set_result(result)

        held.append(lambda: do(worker, work, arrived))
        return future

    model = start()
    monkeypatch.setattr(Worker, "do", held_back)
    for act in (model.cancel, model.park):
        model.submit(turn("next", history, "two", 12))
        assert model.step(None) == []
        act("next")
    assert len(held) == 1, "both wait for the same"
    monkeypatch.setattr(Worker, "do", do)
    model.submit(job("other", "hello", 3))
    answers = Answers()
    while not answers.ended("other"):
        answers.take(model.step(None))
    model.resume("next")
    assert model.step(None) == []
    held.pop()()
    while not answers.ended("next"):
        answers.take(model.step(None))
    assert (answers["next"].tokens, answers["next"].cached_tokens) == (expected, sum(usage(answer)) - 1)
    model.close()


def test_without_memory_for_its_state_a_parked_job_reads_again_and_says_the_same(noise: Path) -> None:
    model = cast(LlamaModel, load_with_cache(noise, kv_ram_bytes=0))
    jobs = [job(f"j{index}", f"{index} and so on", 30, Sampling(temperature=index % 2, seed=3)) for index in range(4)]
    expected = {each.id: fresh(noise, each) for each in jobs}

    def park_and_resume(step: int, answers: Answers) -> None:
        if step in (4, 20, 50) and not answers.ended("j1") and not answers.ended("j2"):
            for id in ("j1", "j2"):
                model.park(id)
        elif step in (8, 24, 54):
            for id in ("j1", "j2"):
                if model._jobs.get(id) and model._jobs[id].slot < 0:
                    model.resume(id)

    answers = run(model, *jobs, each_step=park_and_resume)
    assert answers["j1"].parked >= 2
    assert {id: answer.tokens for id, answer in answers.items()} == expected
    model.close()


def test_a_lower_limit_gives_memory_back_at_once(model: LlamaModel) -> None:
    for index in range(6):
        talk(model, [], f"{index} {SEA}")
        run(model, replace(turn("x", [], f"{index} {SEA}", 2), session=f"s{index}"))
    assert int(model.stats()["kv_ram_bytes"]) > 100_000
    model.limit_cache(50_000)
    assert int(model.stats()["kv_ram_bytes"]) <= 50_000
    model.limit_cache(0)
    assert model.stats()["kv_ram_bytes"] == 0


def test_a_session_goes_on_from_its_own_words_when_another_read_them_as_a_prompt(
    model: LlamaModel, noise: Path
) -> None:
    answer, history = talk(model, [], "tell me of the sea", max_tokens=40)
    held = sum(usage(answer)) - 1
    following = [*history, Message("user", SEA)]
    run(model, Generate("other", tuple(following), 2, GREEDY))
    second = Generate("second", (*following,), 12, GREEDY, session="talk")
    said = run(model, second)["second"]
    assert said.cached_tokens == held
    assert said.tokens == undisturbed(noise, [], "tell me of the sea", second, max_tokens=40)


def test_what_a_session_forgot_does_not_come_back_from_a_slot(model: LlamaModel) -> None:
    _, history = talk(model, [], "tell me of the sea", max_tokens=40)
    talk(model, [], "no, of the mountains", reset_cache=True)
    again, _ = talk(model, history, "go on")
    assert again.cached_tokens < len("tell me of the sea") + 25, "its own words are read as anyone's"


def test_a_state_is_taken_before_what_its_slot_holds_is_saved_in_its_place(noise: Path) -> None:
    model = cast(LlamaModel, load(noise, slots=1, context_size=512))
    run(model, job("first", SEA, 1))
    run(model, job("longer", f"or {SEA}{SEA[:100]}", 1))
    size = int(model.stats()["kv_ram_bytes"])
    assert size > 0
    model.limit_cache(2 * size)
    again = run(model, job("again", f"{SEA} again", 1))["again"]
    assert again.cached_tokens > len(SEA) - 20
    assert model.stats()["kv_states"] == 1
    model.close()


def test_a_state_that_the_backend_refuses_is_not_tried_again(
    noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = cast(LlamaModel, load_with_cache(noise, kv_ram_bytes=0, kv_dir=tmp_path))
    _, history = talk(model, [], SEA)
    model.close()
    model = cast(LlamaModel, load_with_cache(noise, kv_ram_bytes=0, kv_dir=tmp_path))
    monkeypatch.setattr(Context, "restore", lambda *_: False)
    said = run(model, turn("next", history, "two", 12))["next"]
    assert (said.cached_tokens, len(said.tokens)) == (0, 12)
    assert "refused" in caplog.text
    model.close()


def test_a_smaller_context_than_the_states_on_disk(noise: Path, tmp_path: Path) -> None:
    model = cast(LlamaModel, load_with_cache(noise, kv_dir=tmp_path))
    talk(model, [], SEA)
    talk(model, [], SEA + "and so on and so on " * 6)
    model.close()
    small = LlamaDriver().load(
        ModelSpec(
            noise, slots=4, context_size=256, threads=1, fingerprint="a file", kv_disk_bytes=1 << 30, kv_dir=tmp_path
        )
    )
    one = job("one", SEA[:200])
    assert run(small, one)["one"].tokens == fresh(noise, one)
    small.close()


def test_an_error_while_a_state_is_read_costs_no_more_than_the_state(
    noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cast(LlamaModel, load_with_cache(noise, kv_dir=tmp_path))
    _, history = talk(model, [], SEA)
    model.close()

    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(KvFiles, "read", broken)
    model = cast(LlamaModel, load_with_cache(noise, kv_dir=tmp_path))
    said = run(model, turn("next", history, "two", 12))["next"]
    assert (said.cached_tokens, len(said.tokens)) == (0, 12)
    model.close()
