"""A job cancelled at every moment of its life: its slot is free at once, and the next one on it says what it says
alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from granville.hosting.interface import DriverError, Generate, Model
from tests.drivers.llama_jobs import Answers, job, load, run

STAYS = job("stays", "stay with us", 60)
COMES = job("comes", "come in its place", 12)


@pytest.fixture(scope="module")
def model(noise: Path) -> Iterator[Model]:
    """Two slots: one for who stays, and one for who goes and who comes."""
    model = load(noise, slots=2, context_size=512)
    yield model
    model.close()


@pytest.fixture(scope="module")
def other(noise: Path) -> Iterator[Model]:
    """Another one, that nobody is cancelled on."""
    model = load(noise, slots=2, context_size=512)
    yield model
    model.close()


@pytest.fixture(autouse=True)
def nobody_stays(model: Model) -> Iterator[None]:
    yield
    for id in ("stays", "comes", "victim"):
        model.cancel(id)
    assert model.step(None) == []


def victim(moment: Callable[..., None]) -> Generate:
    """Each has a prompt of its own: one that was read before would be in a cache."""
    return job("victim", f"{moment.__name__}: a prompt that is read in many pieces " * 6, 200)


def until(model: Model, condition: Callable[[Answers], bool]) -> Answers:
    answers = Answers()
    for _ in range(500):
        if condition(answers):
            return answers
        answers.take(model.step(0.0))
    raise AssertionError("it never came to that")


def begin(model: Model, victim: Generate) -> None:
    """Somebody streams, so that the victim's prompt is read in small pieces beside it."""
    model.submit(STAYS)
    stays = until(model, lambda answers: "stays" in answers and len(answers["stays"].tokens) > 1)
    assert not stays.ended("stays")
    model.submit(victim)


def before_a_step(model: Model, victim: Generate) -> None:
    begin(model, victim)


def while_prefilling(model: Model, victim: Generate) -> None:
    begin(model, victim)
    for _ in range(6):
        assert {event.id for event in model.step(0.0)} <= {"stays"}, "it is still being read"


def while_streaming(model: Model, victim: Generate) -> None:
    begin(model, victim)
    until(model, lambda answers: "victim" in answers and len(answers["victim"].tokens) >= 2)


def asked_to_park(model: Model, victim: Generate) -> None:
    while_streaming(model, victim)
    model.park("victim")


def asked_to_park_while_prefilling(model: Model, victim: Generate) -> None:
    while_prefilling(model, victim)
    model.park("victim")


def parked(model: Model, victim: Generate) -> None:
    asked_to_park(model, victim)
    until(model, lambda answers: "victim" in answers and answers["victim"].parked == 1)


def parked_while_prefilling(model: Model, victim: Generate) -> None:
    asked_to_park_while_prefilling(model, victim)
    until(model, lambda answers: "victim" in answers and answers["victim"].parked == 1)


def being_restored(model: Model, victim: Generate) -> None:
    parked(model, victim)
    model.resume("victim")


def being_restored_into_its_prompt(model: Model, victim: Generate) -> None:
    parked_while_prefilling(model, victim)
    model.resume("victim")


def restored_and_asked_to_park_again(model: Model, victim: Generate) -> None:
    being_restored(model, victim)
    model.park("victim")


def just_restored(model: Model, victim: Generate) -> None:
    being_restored(model, victim)
    model.step(0.0)


MOMENTS = [
    before_a_step, while_prefilling, while_streaming, asked_to_park, asked_to_park_while_prefilling, parked,
    parked_while_prefilling, being_restored, being_restored_into_its_prompt, restored_and_asked_to_park_again,
    just_restored,
]  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_cancelled(model: Model, other: Model, moment: Callable[[Model, Generate], None]) -> None:
    gone = victim(moment)
    alone = {each.id: run(other, each)[each.id] for each in (STAYS, COMES, gone)}
    moment(model, gone)
    model.cancel("victim")
    model.submit(COMES)  # raises when the slot is not free
    after = until(model, lambda answers: answers.ended("stays", "comes"))
    assert "victim" not in after
    assert after["comes"].tokens == alone["comes"].tokens
    assert after["stays"].tokens == alone["stays"].tokens[-len(after["stays"].tokens) :]
    with pytest.raises(DriverError):
        model.resume("victim")
    again = run(model, gone)["victim"]
    assert again.tokens == alone["victim"].tokens, "what it left in a cache is sound"
