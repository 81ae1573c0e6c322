"""The roster: whether some model can take a request, and what a model says of itself."""

from __future__ import annotations

import math
from typing import Any

import pytest

from granville.errors import NoModel, UnknownModel, Unsupported
from granville.scheduling.roster import RATE_WINDOW_S, ModelEntry, ModelState, Roster
from granville.wire.messages import ChatMessage, ModelType, Request

ALL = frozenset({"messages", "sampling", "constrain", "tools"})


def entry(id: str = "llama-1", type: ModelType = "inference", features: frozenset[str] = ALL) -> ModelEntry:
    return ModelEntry(id, type, f"/models/{id}.gguf", "fake", state="ready", slots=2, features=features)


def roster_of(*entries: ModelEntry) -> Roster:
    roster = Roster()
    for one in entries:
        roster.add(one)
    return roster


def ask(**fields: Any) -> Request:
    return Request(id="r1", **({"text": "hello"} | fields))


def test_order_and_uniqueness() -> None:
    first, second = entry("b-1"), entry("a-1")
    roster = roster_of(first, second)
    assert list(roster) == [first, second]
    with pytest.raises(ValueError, match="b-1"):
        roster.add(entry("b-1"))
    assert list(roster) == [first, second]


def test_an_unknown_model_is_told_which_there_are() -> None:
    with pytest.raises(UnknownModel, match=r"'gpt'.*llama-1, llama-2"):
        roster_of(entry("llama-1"), entry("llama-2")).check(ask(model_id="gpt"))


def test_no_model_of_the_type() -> None:
    with pytest.raises(NoModel, match="stt"):
        roster_of(entry()).check(ask(model_type="stt"))
    with pytest.raises(NoModel):
        Roster().check(ask())


def test_a_model_of_another_type_by_name() -> None:
    with pytest.raises(Unsupported, match="model_type: llama-1 is of type inference, not stt"):
        roster_of(entry(), entry("whisper-1", "stt")).check(ask(model_id="llama-1", model_type="stt"))


@pytest.mark.parametrize("state", ["loading", "restarting", "ready"])
def test_a_model_that_comes_back_takes_requests(state: ModelState) -> None:
    one = entry()
    one.state = state
    roster_of(one).check(ask())
    roster_of(one).check(ask(model_id="llama-1"))


def test_stopped_models_take_none() -> None:
    stopped, ready = entry("llama-1"), entry("llama-2")
    stopped.state = "stopped"
    roster = roster_of(stopped, ready)
    roster.check(ask())
    with pytest.raises(NoModel, match="stopped"):
        roster.check(ask(model_id="llama-1"))


NEEDS: list[tuple[str, Any, str]] = [
    ("messages", [ChatMessage("user", "x")], "messages"),
    ("session_id", "s1", "messages"),
    ("grammar", "root ::= 'a'", "constrain"),
    ("json_schema", {}, "constrain"),
    ("tools", [{}], "tools"),
    ("tool_choice", "auto", "tools"),
    ("temperature", 0.1, "sampling"),
    ("top_p", 0.5, "sampling"),
    ("top_k", 1, "sampling"),
    ("min_p", 0.5, "sampling"),
    ("repeat_penalty", 1.1, "sampling"),
    ("seed", 0, "sampling"),
]


def test_settings_of_sampling_that_are_the_usual_ones_need_nothing() -> None:
    roster_of(entry(features=frozenset())).check(ask(temperature=0.8, top_k=40, seed=None))


@pytest.mark.parametrize(("field", "value", "feature"), NEEDS)
def test_what_a_model_cannot_do_is_refused(field: str, value: Any, feature: str) -> None:
    request = ask(**{field: value})
    roster_of(entry()).check(request)
    lacking = entry(features=ALL - {feature})
    for by_name in (None, "llama-1"):
        with pytest.raises(Unsupported, match=f"^{field}: "):
            roster_of(lacking).check(ask(**{field: value}, model_id=by_name))
    roster_of(lacking, entry("llama-2")).check(request)


@pytest.mark.parametrize(
    ("field", "value"), [("audio", b"RIFF"), ("audio_path", "/a.wav"), ("documents", ["d"]), ("voice", "amy")]
)
def test_what_is_for_other_types_is_refused_and_not_passed_over(field: str, value: object) -> None:
    with pytest.raises(Unsupported, match=f"^{field}: "):
        roster_of(entry()).check(ask(**{field: value}))


@pytest.mark.parametrize("type", ["embedding", "rerank"])
def test_documents_are_for_models_that_read(type: ModelType) -> None:
    roster = roster_of(entry("bert-1", type))
    roster.check(ask(model_type=type, documents=["d"]))
    with pytest.raises(Unsupported, match=r"^voice: "):
        roster.check(ask(model_type=type, documents=["d"], voice="amy"))


def test_one_model_must_be_able_to_do_all_of_it() -> None:
    roster = roster_of(entry("a", features=frozenset({"tools"})), entry("b", features=frozenset({"constrain"})))
    roster.check(ask(tools=[{}]))
    roster.check(ask(grammar="g"))
    with pytest.raises(Unsupported, match=r"^tools: "):
        roster.check(ask(tools=[{}], grammar="g"))


def test_free_slots() -> None:
    one = entry()
    assert one.free == 2
    one.running.add("1")
    assert (one.free, one.listing()["busy"], one.listing()["running"]) == (1, True, 1)
    one.state = "restarting"
    assert one.free == 0


def test_lanes() -> None:
    assert entry("llama-1").lanes == (("model", "llama-1"), ("type", "inference"))


def test_the_listing_has_the_fields_of_the_protocol() -> None:
    assert {"id": "llama-1", "type": "inference", "path": "/models/llama-1.gguf", "busy": False}.items() <= (
        entry().listing().items()
    )


def test_token_rate_settles_and_decays() -> None:
    one = entry()
    assert one.tokens_per_s(5.0) == 0
    now = 0.0
    for step in range(2000):
        now = step * 0.02
        one.produced(4, now)
    assert one.tokens_per_s(now) == pytest.approx(200, rel=0.02)
    assert one.tokens_per_s(now + RATE_WINDOW_S) == pytest.approx(one.tokens_per_s(now) / math.e)
    assert one.tokens_per_s(now + 100) < 0.01
