"""Label scores beside running streams: right, reused, and nobody's business but the asker's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from granville.hosting.interface import Event, Failed, Model, Output, Score
from tests.drivers.llama_jobs import MAX_STEPS, Answers, job, load, run

PREFIX = "a text that every question begins with, long enough for several pieces: " * 2
LABELS = ("x", "y", "z")


def ask(model: Model, question: Score) -> Output | Failed:
    model.submit(question)
    for _ in range(MAX_STEPS):
        for event in model.step(None):
            assert isinstance(event, Output | Failed), event
            return event
    raise AssertionError("no answer")


def question(id: str, text: str = "tell me") -> Score:
    return Score(id, f"{PREFIX}{text}\nlabel:", LABELS)


def values(event: Event) -> list[float]:
    assert isinstance(event, Output), event
    return [value for value in event.value if isinstance(value, float)]


def test_scores_are_log_probabilities_among_the_labels(smollm2: Path) -> None:
    model = load(smollm2)
    assert model.capabilities.score
    colours = ask(model, Score("1", "The colour of fresh snow is", (" black", " white", " loud")))
    scores = values(colours)
    assert math.isclose(sum(map(math.exp, scores)), 1)
    assert max(scores) == scores[1]
    assert min(scores) == scores[2]
    turned = values(ask(model, Score("2", "The colour of fresh snow is", (" loud", " black", " white"))))
    assert turned == [scores[2], scores[0], scores[1]]
    model.close()


def test_only_what_differs_is_read_again_and_the_scores_are_those_of_a_fresh_model(noise: Path) -> None:
    texts = ["first", "second one", "second", "", "first, and rather more of it than before " * 3]
    warm = load(noise)
    answers = [ask(warm, question(str(number), text)) for number, text in enumerate(texts)]
    for number, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        fresh = load(noise)
        alone = ask(fresh, question("alone", text))
        fresh.close()
        assert isinstance(alone, Output)
        assert isinstance(answer, Output)
        assert answer.value == alone.value
        assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
        assert alone.usage.cached_tokens == 0
        if number:
            shared = len(PREFIX)
            assert shared <= answer.usage.cached_tokens + 2
            assert answer.usage.cached_tokens <= answer.usage.prompt_tokens - 2
    assert len({tuple(values(answer)) for answer in answers}) == len(texts)
    warm.close()


def test_streams_say_beside_questions_what_they_say_alone(noise: Path) -> None:
    model = load(noise, slots=2)
    jobs = [job(str(n), f"job {n}", max_tokens=40) for n in range(2)]
    alone = run(model, *jobs)
    model.close()
    model = load(noise, slots=2)
    expected = values(ask(model, question("expected")))
    for each in jobs:  # both slots are taken: a question needs none
        model.submit(each)
    streams, scores = Answers(), []
    for step in range(MAX_STEPS):
        if step < 5:
            model.submit(question(f"question-{step}"))
        events = model.step(None)
        asked = [event for event in events if event.id.startswith("question")]
        assert len(asked) <= 1
        scores += asked
        streams.take(event for event in events if event not in asked)
        if streams.ended("0", "1") and len(scores) == 5:
            break
    assert streams == alone
    assert [event.id for event in scores] == [f"question-{n}" for n in range(5)]
    assert all(values(event) == expected for event in scores)
    model.close()


def test_a_long_prompt_is_read_in_pieces_between_the_tokens_of_streams(noise: Path) -> None:
    model = load(noise, slots=1)
    model.submit(job("stream", max_tokens=200))
    while not any(event.id == "stream" for event in model.step(None)):
        pass
    model.submit(question("long", "and on and on " * 20))
    steps = 0
    while True:
        events = model.step(None)
        assert any(event.id == "stream" for event in events), "the stream waited"
        steps += 1
        if any(isinstance(event, Output) for event in events):
            break
    assert steps > 5
    model.close()


def test_a_question_of_usual_length_is_read_at_once_when_nothing_else_runs(noise: Path) -> None:
    model = load(noise, slots=1)
    ask(model, question("first"))
    for id, length, steps in (("short", 50, 1), ("long", 100, 2)):
        model.submit(question(id, "y" * length))
        events = [event for _ in range(steps) for event in model.step(None)]
        assert [event.id for event in events] == [id]
    model.close()


def test_a_cancelled_question_is_forgotten_and_what_it_read_is_kept(noise: Path) -> None:
    model = load(noise)
    model.submit(question("gone"))
    assert model.step(None) == []  # a piece of it
    model.submit(question("also gone"))
    model.cancel("gone")
    model.cancel("also gone")
    model.cancel("never there")
    assert model.step(None) == []
    answer = ask(model, question("next"))
    assert isinstance(answer, Output)
    assert answer.usage.cached_tokens > 16
    model.close()


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (Score("bad", "x" * 3000, LABELS), "prompt_too_long", ("1024",)),
        (Score("bad", "x", ("a",)), "bad_request", ("labels",)),
        (Score("bad", "x", ("a", "a")), "bad_request", ("labels",)),
        (Score("bad", "x", ("a", "")), "bad_request", ("labels",)),
    ],
)
def test_a_question_that_cannot_be_answered_fails_alone(
    noise: Path, bad: Score, error: str, words: tuple[str, ...]
) -> None:
    model = load(noise)
    failed = ask(model, bad)
    assert isinstance(failed, Failed)
    assert failed.error == error
    assert all(word in failed.message for word in words)
    assert isinstance(ask(model, question("good")), Output)
    model.close()


def test_names_of_control_tokens_in_a_prompt_are_text(smollm2: Path) -> None:
    model = load(smollm2)
    plain = ask(model, Score("1", "end", (" yes", " no")))
    named = ask(model, Score("2", "<|im_end|>", (" yes", " no")))
    assert isinstance(plain, Output)
    assert isinstance(named, Output)
    assert named.usage.prompt_tokens > 3
    model.close()
