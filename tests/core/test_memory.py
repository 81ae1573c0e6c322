"""The memory budget: what fits, what is said of what does not, and what yields to requests in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.errors import DoesNotFit
from granville.scheduling.memory import (
    DAEMON_BYTES,
    JOB_BYTES,
    REQUEST_FLOOR_BYTES,
    STEPS,
    Held,
    MemoryBudget,
    ModelMemory,
    held_bytes,
    share,
    size,
)

MB = 1 << 20
SMALL = ModelMemory(weights_bytes=100 * MB, kv_token_bytes=20 << 10, slots=8, context_size=2048, overhead_bytes=80 * MB)
"""320 MiB of KV."""


def budget(limit: int | None, *models: ModelMemory, kv_ram: int = 64 * MB) -> MemoryBudget:
    made = MemoryBudget(limit, kv_ram)
    for n, model in enumerate(models):
        made.reserve(str(n), f"model {n}", model)
    return made


def test_the_formula_to_the_byte() -> None:
    """sum(weights) + sum(KV) + overhead a model + the daemon's own + --kv-ram + a floor for requests <= --memory"""
    exact = 2 * (100 + 320 + 80) * MB + DAEMON_BYTES + 64 * MB + REQUEST_FLOOR_BYTES
    budget(exact, SMALL, SMALL)
    with pytest.raises(DoesNotFit):
        budget(exact - 1, SMALL, SMALL)


def test_a_refusal_has_the_figures_and_what_would_fit_does() -> None:
    tight = budget(900 * MB, SMALL)
    before = tight.request_bytes_limit
    with pytest.raises(DoesNotFit) as refused:
        tight.reserve("b", "b.gguf", SMALL)
    assert tight.request_bytes_limit == before
    message = refused.value.message
    for figure in ("b.gguf", "weights 105 MB", "8 slots x 2048 tokens x 20480 bytes = 336 MB", "--memory 944 MB",
                   "524 MB for other models", "--slots 1", "--context-size 256", "--memory 1168M"):  # fmt: skip
        assert figure in message, (figure, message)
    for fits in (
        ModelMemory(100 * MB, 20 << 10, 1, 2048, 80 * MB),
        ModelMemory(100 * MB, 20 << 10, 8, 256, 80 * MB),
    ):
        budget(900 * MB, SMALL).reserve("b", "b.gguf", fits)
    MemoryBudget(1168 * MB, 64 * MB).reserve("b", "b.gguf", SMALL)


def test_what_can_never_fit_is_told_what_memory_it_needs() -> None:
    with pytest.raises(DoesNotFit, match=r"What would fit: --memory \d+M$"):
        budget(200 * MB, SMALL)


def test_released_memory_is_there_again_and_a_driver_knows_better() -> None:
    made = budget(800 * MB, SMALL)
    with pytest.raises(DoesNotFit):
        made.reserve("b", "b", SMALL)
    made.correct("0", 0)
    with pytest.raises(DoesNotFit):
        made.reserve("b", "b", SMALL)
    made.correct("0", 10 * MB)
    made.reserve("b", "b", SMALL)
    made.release("b")
    made.release("b")
    assert made.fixed_bytes == DAEMON_BYTES + 90 * MB


@given(held=st.integers(0, 400 * MB))
def test_caches_go_first_then_new_work(held: int) -> None:
    made = budget(DAEMON_BYTES + 500 * MB + 300 * MB, SMALL)
    room = 300 * MB
    allowance = made.cache_allowance(held)
    assert 0 <= allowance <= 64 * MB
    if made.may_hold(held, 0):
        assert held + allowance <= room  # all together stay within the budget
    else:
        assert allowance == 0
    assert made.may_hold(held, 0) == (held <= room)
    assert made.may_hold(held, max(0, room - held)) == (held <= room)
    assert not made.may_hold(held, max(0, room - held) + 1)


def test_without_a_limit_nothing_yields() -> None:
    free = budget(None, SMALL, kv_ram=5)
    assert (free.cache_allowance(1e18), free.may_hold(1e18, 1e18)) == (5, True)


def test_models_are_told_of_coarse_steps_only() -> None:
    made = budget(DAEMON_BYTES + 500 * MB + 128 * MB, SMALL)
    held = Held(made)
    told = 0
    requests = 0
    while held.fits(100_000):
        held.take(100_000)
        requests += 1
        told += held.caches_are_to_change()
    assert requests == 128 * MB // held_bytes(100_000)
    assert STEPS // 2 <= told <= STEPS
    for _ in range(requests):
        held.give_back(100_000)
        told += held.caches_are_to_change()
    assert (held.total_bytes, told <= 2 * STEPS + 1) == (0, True)
    assert made.cache_step(0) == STEPS


def test_a_small_request_is_more_than_its_bytes() -> None:
    assert held_bytes(0) == JOB_BYTES
    assert held_bytes(1000) > 1000 + JOB_BYTES


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 MB"), (1500, "2 kB"), (98_000_000, "98 MB"), (1_500_000_000, "1.5 GB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_shares_are_even() -> None:
    assert [share(100, n) for n in (0, 1, 3)] == [100, 100, 33]
