"""Which model a job is bound to: strict rotation, what not all can do, and where jobs go whose model is gone."""

from __future__ import annotations

import pytest

from granville.config import Strategy
from granville.errors import NoModel, UnknownModel, Unsupported
from granville.scheduling.roster import ModelEntry, ModelState, Roster
from granville.scheduling.routing import Router, can_ever_run
from granville.wire.messages import ModelType, Request
from tests.core.jobs import make_job

ALL = frozenset({"messages", "constrain", "tools"})


def entry(
    id: str, state: ModelState = "ready", type: ModelType = "inference", features: frozenset[str] = ALL
) -> ModelEntry:
    return ModelEntry(id, type, f"/m/{id}.gguf", "fake", state=state, slots=2, features=features)


def router(strategy: Strategy, *entries: ModelEntry) -> Router:
    roster = Roster()
    for one in entries:
        roster.add(one)
    return Router(roster, strategy)


def ask(**fields: object) -> Request:
    return Request(id="r", text="x", **fields)  # type: ignore[arg-type]


def test_least_busy_binds_nothing_early() -> None:
    assert router("least-busy", entry("a"), entry("b")).choose(ask()) is None


def test_a_request_that_names_its_model_is_bound_to_no_other() -> None:
    one = router("round-robin", entry("a"), entry("b"))
    assert [one.choose(ask(model_id="b")), one.choose(ask())] == [None, "a"]


def test_rotation_is_strict_by_type_and_over_what_is_ready() -> None:
    a, b, c = entry("a"), entry("b"), entry("c")
    one = router("round-robin", a, entry("e", type="embedding"), b, c)
    assert [one.choose(ask()) for _ in range(4)] == ["a", "b", "c", "a"]
    assert [one.choose(ask(model_type="embedding")) for _ in range(2)] == ["e", "e"]
    b.state = "restarting"
    assert [one.choose(ask()) for _ in range(3)] == ["c", "a", "c"]
    b.state = "ready"
    assert [one.choose(ask()) for _ in range(3)] == ["a", "b", "c"]
    one.roster.remove("c")
    assert one.choose(ask()) in ("a", "b")


def test_with_none_ready_the_first_that_comes_back_takes_it() -> None:
    assert router("round-robin", entry("a", "restarting"), entry("b", "failed")).choose(ask()) is None


@pytest.mark.parametrize("strategy", ["least-busy", "round-robin"])
def test_what_one_model_alone_can_do_goes_there(strategy: Strategy) -> None:
    able, unable = entry("able"), entry("unable", features=frozenset())
    one = router(strategy, unable, able)
    assert [one.choose(ask(tools=[{}])) for _ in range(2)] == ["able", "able"]
    able.state = "restarting"
    expected = "able" if strategy == "least-busy" else one.choose(ask(tools=[{}]))
    assert one.choose(ask(tools=[{}])) == expected == "able"
    one.roster.remove("able")
    with pytest.raises(Unsupported, match="tools"):
        one.choose(ask(tools=[{}]))


def test_the_least_busy_of_those_that_can() -> None:
    a, b = entry("a"), entry("b")
    a.running.add("1")
    one = router("least-busy", a, b, entry("c", features=frozenset()))
    assert one.choose(ask(grammar="g")) == "b"


def test_a_model_that_was_never_loaded_may_be_able() -> None:
    failed = entry("f", "failed", features=frozenset())
    failed.slots = 0
    one = router("least-busy", failed)
    assert one.choose(ask(tools=[{}])) is None
    assert can_ever_run(one.roster, ask(tools=[{}]))


def test_jobs_move_to_another_ready_model_or_wait_where_they_are() -> None:
    a, b = entry("a", "restarting"), entry("b")
    one = router("round-robin", a, b)
    job = make_job()
    assert one.move(job, "a") == "b"
    b.state = "restarting"
    assert one.move(job, "a") == "a"
    a.state = "unloading"
    assert one.move(job, "a") is None
    b.state = "stopped"
    with pytest.raises(NoModel):
        one.move(job, "a")


def test_an_unloading_model_is_there_no_longer() -> None:
    one = router("least-busy", entry("a", "unloading"), entry("b"))
    with pytest.raises(UnknownModel, match="there are: b"):
        one.choose(ask(model_id="a"))
    assert not can_ever_run(one.roster, ask(model_id="a"))
    assert one.choose(ask()) is None
    assert not one.roster["a"].free


def test_what_is_parked_on_an_unloading_model_comes_back_to_it_alone() -> None:
    leaving = entry("a", "unloading")
    leaving.drains = True
    assert (leaving.free, leaving.lanes) == (2, (("model", "a"),))
