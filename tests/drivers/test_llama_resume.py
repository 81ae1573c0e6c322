"""A job that a failure cut short goes on in the next life of the model, with the words that it would have had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from granville.hosting.interface import Constraint, Generate, Message, Model, Parked, Sampling
from tests.drivers.llama_jobs import Answer, Answers, job, load, run
from tests.drivers.test_llama_smollm2 import words

SEEDED = Sampling(temperature=0.9, seed=7)
STEP = 3
"""Every third place to be cut at is tried."""


@pytest.fixture(scope="module")
def model(noise: Path) -> Iterator[Model]:
    model = load(noise, context_size=512)
    yield model
    model.close()


def cut(whole: Answer, tokens: int) -> Answer:
    """What a client had read when so many tokens had been said."""
    pieces = whole.pieces[:tokens]
    return Answer("".join(pieces), whole.tokens[:tokens], pieces)


def check_from_everywhere(model: Model, request: Generate, step: int = STEP) -> Answer:
    """Cut short anywhere, the answer is the same, and of what was read nothing comes again."""
    whole = run(model, request)[request.id]
    for tokens in range(0, len(whole.tokens) + 1, step):
        read = cut(whole, tokens)
        rest = run(model, replace(request, produced=tuple(read.tokens)))[request.id]
        assert read.text + rest.text == whole.text, f"cut after {tokens} tokens"
        assert read.tokens + rest.tokens == whole.tokens
        assert rest.end == whole.end
    return whole


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        SEEDED,
        replace(SEEDED, repeat_penalty=1.5, top_p=0.5),
        Sampling(temperature=0, repeat_penalty=1.5),  # without a seed what was said is remembered all the same
    ],
)
def test_the_answer_goes_on_as_if_undisturbed(model: Model, sampling: Sampling) -> None:
    whole = check_from_everywhere(model, job("x", "a question", 24, sampling))
    assert "\ufffd" in whole.text, "characters are cut as well"


def test_a_draw_goes_on_from_where_the_seed_had_come(model: Model) -> None:
    """Not from its beginning, and not elsewhere when nothing is left to draw: the next draws differ from the first."""
    whole = run(model, job("x", "a question", 24, SEEDED))["x"]
    assert whole.tokens[:12] != whole.tokens[12:]
    other = run(model, replace(job("x", "a question", 24, replace(SEEDED, seed=8)), produced=tuple(whole.tokens[:12])))
    assert other["x"].tokens != whole.tokens[12:]


def test_stop_strings_see_what_was_said_before(model: Model) -> None:
    whole = run(model, job("x", "a question", 40, SEEDED))["x"]
    letters = [n for n, piece in enumerate(whole.pieces) if piece.strip() and piece.isascii()]
    at = next(n for n in letters if n > 8 and whole.pieces[n + 1] and whole.pieces[n + 1].isascii())
    stop = whole.pieces[at] + whole.pieces[at + 1]  # straddles two tokens
    answer = check_from_everywhere(model, job("x", "a question", 40, SEEDED, stop=(stop,)), step=1)
    assert stop not in answer.text
    assert answer.reason == "stop"


def test_a_form_goes_on_from_where_it_was(model: Model) -> None:
    """That of a JSON schema, with and without a seed."""
    schema = '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}'
    for sampling in (Sampling(temperature=0), SEEDED):
        request = replace(job("x", "a question", 60, sampling), constraint=Constraint("json_schema", schema))
        assert check_from_everywhere(model, request).text.startswith("{")


def test_an_answer_that_was_whole_but_for_its_end_ends(alphabet: Path) -> None:
    model = load(alphabet)
    request = job("x", "hello", 30)
    whole = run(model, request)["x"]
    rest = run(model, replace(request, produced=tuple(whole.tokens)))["x"]
    assert (rest.text, rest.tokens, rest.end) == ("", [], whole.end)
    full = run(model, replace(request, max_tokens=3, produced=tuple(whole.tokens[:3])))["x"]
    assert (full.text, full.reason) == ("", "length")
    model.close()


def test_it_may_be_parked_before_it_has_caught_up(model: Model) -> None:
    request = job("x", "a question", 24, SEEDED)
    whole = run(model, request)["x"]
    model.submit(replace(request, produced=tuple(whole.tokens[:16])))
    for _ in range(4):
        assert model.step(None) == []
    model.park("x")
    assert model.step(None) == [Parked("x")]
    model.resume("x")
    answers = Answers()
    while not answers.ended("x"):
        answers.take(model.step(None))
    assert answers["x"].tokens == whole.tokens[16:]


@pytest.mark.parametrize(("tokens", "count"), [(60, 4), (640, 2)])
def test_on_a_real_model(smollm2_model: Model, tokens: int, count: int) -> None:
    """Beside others, and with a prompt that is partly in a cache already."""
    requests = [
        Generate(f"j{n}", (Message("user", words(tokens, n)),), 18, Sampling(temperature=n % 2 * 0.8, seed=n))
        for n in range(count)
    ]
    whole = run(smollm2_model, *requests)
    rests = run(
        smollm2_model,
        *(replace(each, produced=tuple(whole[each.id].tokens[: 5 + 4 * n])) for n, each in enumerate(requests)),
    )
    for n, each in enumerate(requests):
        read = cut(whole[each.id], 5 + 4 * n)
        assert read.tokens + rests[each.id].tokens == whole[each.id].tokens
        assert read.text + rests[each.id].text == whole[each.id].text


@pytest.fixture(scope="module")
def smollm2_model(smollm2: Path) -> Iterator[Model]:
    model = load(smollm2, context_size=1024)
    yield model
    model.close()
