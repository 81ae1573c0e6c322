"""How long a piece of prefill may be: costs are learnt from a machine of known speed, and allowances kept."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from granville_llama.pacing import LEAST_PIECE_TOKENS, MIN_PIECE_TOKENS, PREFILL, Costs, Pacer
from hypothesis import given
from hypothesis import strategies as st

LONG_PROMPT = 1500
STREAMS = 4
STREAM_WORK = 4 * 200


def prefill_s(tokens: int, context: int, times: float = 1.0) -> float:
    """Ten milliseconds, two and a half a token, twice as much behind 1 700 tokens."""
    return times * (0.010 + 0.0025 * tokens * (1 + context / 1700))


def decode_s(streams: int, work: int, times: float = 1.0) -> float:
    return times * (0.018 + 0.009 * streams + 0.00001 * work)


def paced(*, threads: int = 2, times: float = 1.0, noise: Callable[[], float] = lambda: 1.0) -> Pacer:
    """One that has read a few short prompts with nobody waiting, and decoded."""
    pacer = Pacer(slots=8, batch_tokens=128)
    pacer.threads = threads
    for _ in range(4):
        pacer.prefilled(46, 0, prefill_s(46, 0, times) * noise())
        pacer.prefilled(128, 0, prefill_s(128, 0, times) * noise())
    pacer.streams_turn()
    for _ in range(20):
        pacer.decoded(STREAMS, STREAM_WORK, decode_s(STREAMS, STREAM_WORK, times) * noise())
    return pacer


def turns(
    pacer: Pacer, *, times: float = 1.0, prefill_ms: float | None = None, noise: Callable[[], float] = lambda: 1.0
) -> list[float]:
    """Seconds of prefill between two decodes while a long prompt is read."""
    read, found, spent = 0, [], 0.0
    while read < LONG_PROMPT:
        tokens = pacer.piece(
            throttled=True, context=read, streams=STREAMS, stream_work=STREAM_WORK, prefill_ms=prefill_ms
        )
        if tokens:
            tokens = min(tokens, LONG_PROMPT - read)
            took = prefill_s(tokens, read, times) * noise()
            pacer.prefilled(tokens, tokens * read, took)
            read += tokens
            spent += took
        else:
            found.append(spent)
            spent = 0.0
            pacer.decoded(STREAMS, STREAM_WORK, decode_s(STREAMS, STREAM_WORK, times) * noise())
            pacer.streams_turn()
    return found


def test_streams_wait_for_two_decodes_of_prefill_however_long_the_prompt_gets() -> None:
    decode = decode_s(STREAMS, STREAM_WORK)
    waits = turns(paced())
    assert max(waits) <= 2.0 * decode
    assert min(waits) >= 1.0 * decode, "what is allowed is used, but for the headroom"


@given(st.integers(0, 1000), st.sampled_from([0.5, 2.0]))
def test_it_holds_on_a_machine_whose_speed_wavers(seed: int, times: float) -> None:
    draw = random.Random(seed)

    def noise() -> float:
        return draw.uniform(0.93, 1.07)

    waits = turns(paced(times=times, noise=noise), times=times, noise=noise)
    assert max(waits) <= 2.2 * decode_s(STREAMS, STREAM_WORK, times)


@pytest.mark.parametrize("prefill_ms", [130.0, 400.0])
def test_the_allowance_can_be_given_in_milliseconds(prefill_ms: float) -> None:
    waits = turns(paced(), prefill_ms=prefill_ms)
    assert max(waits) <= prefill_ms / 1000
    assert sum(waits) / len(waits) >= 0.6 * prefill_ms / 1000


def pieces(pacer: Pacer, *, times: float, decodes: float) -> list[tuple[int, int]]:
    """The first piece of each turn of a long prompt, with what was read before it, where prefill is so many `times` as
    dear and the allowance is so many decodes."""
    read, found = 0, []
    while read < LONG_PROMPT:
        prefill_ms = 1000 * decodes * decode_s(STREAMS, STREAM_WORK)
        tokens = pacer.piece(
            throttled=True, context=read, streams=STREAMS, stream_work=STREAM_WORK, prefill_ms=prefill_ms
        )
        found.append((read, tokens))
        pacer.prefilled(tokens, tokens * read, prefill_s(tokens, read, times))
        read += tokens
        pacer.streams_turn()
    return found


def test_a_piece_has_sixteen_tokens_though_they_are_over_what_is_planned() -> None:
    """Within the allowance itself, but with less headroom than longer pieces get."""
    allowance = 1.35 * prefill_s(MIN_PIECE_TOKENS, LONG_PROMPT)
    found = pieces(paced(), times=1.0, decodes=allowance / decode_s(STREAMS, STREAM_WORK))
    assert {tokens for read, tokens in found if read > 1400} == {MIN_PIECE_TOKENS}
    assert min(tokens for _, tokens in found) == MIN_PIECE_TOKENS


def test_a_piece_has_fewer_than_sixteen_where_those_would_make_streams_wait_too_long() -> None:
    """Behind 1 500 tokens of a machine with slow prefill sixteen take three decodes and a half."""
    times = 3.5 * decode_s(STREAMS, STREAM_WORK) / prefill_s(MIN_PIECE_TOKENS, LONG_PROMPT)
    found = pieces(paced(), times=times, decodes=2.0)
    assert {tokens for read, tokens in found if read > 1000} == {LEAST_PIECE_TOKENS}
    decode = decode_s(STREAMS, STREAM_WORK)
    later = [(read, tokens) for read, tokens in found if read > 100]  # by then it is known how slow it is
    assert max(prefill_s(tokens, read, times) for read, tokens in later) <= 2.0 * decode
    assert all(
        tokens >= MIN_PIECE_TOKENS or prefill_s(MIN_PIECE_TOKENS, read, times) > 1.5 * decode for read, tokens in later
    )


def test_where_nothing_fits_a_turn_has_one_small_piece() -> None:
    pacer = paced()
    read = []
    for turn in range(3):
        while tokens := pacer.piece(throttled=True, context=0, streams=1, stream_work=0, prefill_ms=0.0):
            pacer.prefilled(tokens, 0, prefill_s(tokens, 0))
            read.append(tokens)
        assert len(read) == turn + 1
        pacer.streams_turn()
    assert read == [LEAST_PIECE_TOKENS] * 3


def test_before_anything_is_known_pieces_are_short() -> None:
    pacer = Pacer(slots=8, batch_tokens=128)
    assert pacer.piece(throttled=True, context=0, streams=1, stream_work=0, prefill_ms=None) == MIN_PIECE_TOKENS
    assert pacer.expect_decode(1, 0) == 0.0


def test_prompts_that_come_together_are_read_together() -> None:
    """A turn that began without a stream is as long for the first stream's neighbours."""
    pacer = paced()
    read, throttled = [], False
    while tokens := pacer.piece(throttled=throttled, context=0, streams=int(throttled), stream_work=0, prefill_ms=None):
        pacer.prefilled(tokens, 0, prefill_s(tokens, 0))
        read.append(tokens)
        throttled = True
    assert read == [128] * 4


def test_who_is_not_throttled_reads_on() -> None:
    pacer = paced()
    for _ in range(20):
        assert pacer.piece(throttled=False, context=0, streams=4, stream_work=0, prefill_ms=1.0) == 128
        pacer.prefilled(128, 0, prefill_s(128, 0))


def test_interrupted_pieces_become_smaller_and_larger_again() -> None:
    pacer = Pacer(slots=8, batch_tokens=128)

    def size() -> int:
        return pacer.piece(throttled=False, context=0, streams=0, stream_work=0, prefill_ms=None)

    sizes = [size()]
    for _ in range(4):
        pacer.interrupted()
        sizes.append(size())
    assert sizes == [128, 64, 32, 16, 16]
    pacer.prefilled(16, 0, 0.1)
    assert size() == 32


def test_costs_are_told_apart_and_one_strange_call_is_not_believed() -> None:
    costs = Costs(PREFILL)
    for read in range(0, LONG_PROMPT, 64):
        for tokens in (16, 64):
            costs.learn(tokens, tokens * read, prefill_s(tokens, read))
    for tokens, context in ((16, 0), (128, 0), (16, 1500), (128, 1500)):
        assert costs.expect(tokens, tokens * context) == pytest.approx(prefill_s(tokens, context), rel=0.1)
    before = costs.expect(64, 0)
    costs.learn(64, 0, 100 * before)
    assert costs.expect(64, 0) < 1.5 * before


def test_costs_follow_a_machine_that_slows_down() -> None:
    pacer = paced()
    for _ in range(30):
        pacer.decoded(STREAMS, STREAM_WORK, decode_s(STREAMS, STREAM_WORK, 2.0))
    assert pacer.expect_decode(STREAMS, STREAM_WORK) == pytest.approx(decode_s(STREAMS, STREAM_WORK, 2.0), rel=0.3)


@given(
    st.lists(st.tuples(st.integers(1, 512), st.integers(0, 8192), st.floats(1e-6, 100.0)), min_size=1, max_size=60),
    st.integers(0, 8192),
)
def test_more_never_costs_less(calls: list[tuple[int, int, float]], context: int) -> None:
    costs = Costs(PREFILL)
    for tokens, behind, seconds in calls:
        costs.learn(tokens, tokens * behind, seconds)
    assert 0 < costs.expect(1, 0) < costs.expect(2, 0) <= costs.expect(2, 100)
    fits = costs.tokens_within(0.5, context)
    assert fits == 0 or costs.expect(fits, fits * context) <= 0.5 * (1 + 1e-9)


def test_each_number_of_threads_has_costs_of_its_own() -> None:
    pacer = paced(threads=2)
    with_two = pacer.expect_decode(STREAMS, STREAM_WORK)
    pacer.threads = 1
    assert pacer.expect_decode(STREAMS, STREAM_WORK) == pytest.approx(2 * with_two), "as a guess"
    pacer.decoded(STREAMS, STREAM_WORK, 1.5 * with_two)
    assert pacer.expect_decode(STREAMS, STREAM_WORK) == pytest.approx(1.5 * with_two, rel=0.1)
    pacer.threads = 2
    assert pacer.expect_decode(STREAMS, STREAM_WORK) == with_two
