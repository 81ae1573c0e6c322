"""Framing: any split of the stream gives the same values, and everything it may be made to hold is bounded."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from itertools import pairwise

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.errors import BadRequest, FramingLost, GranvilleError, TooLarge
from granville.wire.framing import MAX_ITEMS, FrameReader
from granville.wire.messages import Request, parse_message

LIMIT = 1024

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
messages = st.dictionaries(st.text(max_size=8), values, max_size=5) | st.lists(values, max_size=5)
rubbish = st.sampled_from(
    [
        b"\xc1",
        b"hello, who is there?\n",
        b"\x07",
        b"\xdb\x40\x00\x00\x00" + bytes(4 * LIMIT),
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 3000,
        b"\x81\x90\x01",
        msgpack.packb({"text": "x" * 4 * LIMIT}),
    ]
)


def read(reader: FrameReader, parts: Iterable[bytes]) -> tuple[list[object], GranvilleError | None]:
    """All values, and the error that ended the stream."""
    got: list[object] = []
    try:
        for part in parts:
            got.extend(reader.feed(part))  # keeps what came before an exception
        reader.close()
    except GranvilleError as error:
        return got, error
    return got, None


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(st.lists(messages, max_size=6), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_split_gives_the_same_values(sent: list[object], cuts: list[int]) -> None:
    data = b"".join(map(msgpack.packb, sent))
    reader = FrameReader()
    assert read(reader, split(data, cuts)) == (sent, None)
    assert reader.pending == 0


@given(st.lists(messages, max_size=3), rubbish, st.lists(st.integers(0, 10_000), max_size=8))
def test_an_error_comes_after_the_values_before_it(sent: list[object], bad: bytes, cuts: list[int]) -> None:
    data = b"".join(map(msgpack.packb, sent)) + bad
    got, error = read(FrameReader(LIMIT * 4), split(data, cuts))
    _, of_the_whole = read(FrameReader(LIMIT * 4), [data])
    assert got == sent
    assert isinstance(error, FramingLost | TooLarge)
    assert type(error) is type(of_the_whole)


@given(st.lists(messages, min_size=1, max_size=4), st.integers(1, 10_000))
def test_the_end_inside_a_message_is_lost_framing(sent: list[object], cut: int) -> None:
    last = msgpack.packb(sent[-1])
    kept = cut % len(last)
    data = b"".join(map(msgpack.packb, sent[:-1])) + last[:kept]
    got, error = read(FrameReader(), [data])
    assert got == sent[:-1]
    assert isinstance(error, FramingLost) == (kept > 0)


def test_sizes_are_those_of_the_messages() -> None:
    sent = [{"id": "x" * n} for n in (1, 40, 300, 3)]
    packed = [msgpack.packb(value) for value in sent]
    reader = FrameReader()
    assert [reader.last_bytes for _ in reader.feed(b"".join(packed))] == [len(one) for one in packed]
    byte_at_a_time = FrameReader()
    sizes = [
        byte_at_a_time.last_bytes
        for one in packed
        for place in range(len(one))
        for _ in byte_at_a_time.feed(one[place : place + 1])
    ]
    assert sizes == [len(one) for one in packed]


def test_pending_counts_the_part_message() -> None:
    reader = FrameReader()
    packed = msgpack.packb({"id": "abc"})
    assert len(list(reader.feed(packed + packed[:4]))) == 1
    assert reader.pending == 4
    assert list(reader.feed(packed[4:])) == [{"id": "abc"}]
    assert reader.pending == 0


def message_of(size: int) -> bytes:
    packed: bytes = msgpack.packb({"text": "x" * (size - 9)})  # map, 4-letter key, 16-bit string header
    assert len(packed) == size
    return packed


@pytest.mark.parametrize("step", [1, 7, LIMIT, 10 * LIMIT])
@pytest.mark.parametrize("before", [0, 1, 300])
def test_the_size_limit_is_exact(step: int, before: int) -> None:
    """Wherever the message lies in the stream, and however it is cut."""
    small = [{"n": n} for n in range(before)]
    head = b"".join(map(msgpack.packb, small))

    def parts(data: bytes) -> list[bytes]:
        return [data[start : start + step] for start in range(0, len(data), step)]

    fits = head + message_of(LIMIT) + message_of(LIMIT)
    got, error = read(FrameReader(LIMIT), parts(fits))
    assert error is None
    assert [len(value["text"]) for value in got[before:] if isinstance(value, dict)] == [LIMIT - 9] * 2
    got, error = read(FrameReader(LIMIT), parts(head + message_of(LIMIT + 1)))
    assert got == small
    assert isinstance(error, TooLarge)


def test_the_limit_holds_for_many_small_items_too() -> None:
    """No single string is too long: the whole is."""
    data = msgpack.packb(["x" * 100] * 50)
    got, error = read(FrameReader(LIMIT), [data[n : n + 64] for n in range(0, len(data), 64)])
    assert got == []
    assert isinstance(error, TooLarge)
    assert str(LIMIT) in error.message


@pytest.mark.parametrize(
    "header",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of 4 G items
        b"\xdf\xff\xff\xff\xff",  # a map of as many
        b"\xdd" + (MAX_ITEMS + 1).to_bytes(4, "big"),
    ],
)
def test_a_header_that_promises_too_much_is_refused_at_once(header: bytes) -> None:
    with pytest.raises(TooLarge):
        list(FrameReader().feed(header))


@pytest.mark.parametrize("header", [b"\x81\xa4text\xdb", b"\x81\xa5audio\xc6", b"\x81\xa4blob\xc9"])
def test_a_promised_gigabyte_is_refused_at_the_limit(header: bytes) -> None:
    """Nothing is taken on the promise; whoever sends on gets the error when the message is over the limit."""
    reader = FrameReader(1 << 20)
    begun = header + (1 << 30).to_bytes(4, "big")
    tracemalloc.start()
    try:
        assert list(reader.feed(begun)) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert reader.pending == len(begun)
    assert list(reader.feed(bytes((1 << 20) - len(begun)))) == []
    with pytest.raises(TooLarge):
        list(reader.feed(b"x"))
    with pytest.raises(FramingLost, match="ended inside a message"):
        reader.close()


def test_as_many_items_as_allowed() -> None:
    sent = [None] * MAX_ITEMS
    assert list(FrameReader().feed(msgpack.packb(sent))) == [sent]


def test_a_hundred_levels_cost_only_their_own_message() -> None:
    deep: object = "x"
    for _ in range(100):
        deep = [deep]
    values = list(FrameReader().feed(msgpack.packb({"id": "deep", "tools": deep}) + msgpack.packb({"id": "next"})))
    assert len(values) == 2
    with pytest.raises(BadRequest, match="tools: nested deeper") as refused:
        parse_message(values[0])
    assert refused.value.id == "deep"


@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1k"])
def test_three_thousand_levels_are_lost_framing(opener: bytes) -> None:
    with pytest.raises(FramingLost):
        list(FrameReader().feed(opener * 3000))


@pytest.mark.parametrize(
    ("field", "named"), [("text", "text"), ("model_id", "model_id"), ("unheard_of", "unheard_of"), ("id", "id")]
)
def test_invalid_utf8_costs_one_message(field: str, named: str) -> None:
    bad = {"id": b"r1", "text": b"hello", field: b"caf\xe9"}
    good = {"id": "r2", "text": "naïve ✓"}
    stream = msgpack.packb(bad, use_bin_type=False) + msgpack.packb(good)
    first, second = FrameReader().feed(stream)
    with pytest.raises(BadRequest, match=rf"^{named}: not valid UTF-8") as refused:
        parse_message(first)
    assert refused.value.id == (None if field == "id" else "r1")
    request, unknown = parse_message(second)
    assert isinstance(request, Request)
    assert (request.text, unknown) == ("naïve ✓", 0)


@pytest.mark.parametrize(
    "data", [b"\x05", b"\xc0", b"\xcb" + bytes(8), b"\xa3abc", b"GET / HTTP/1.1\r\n", b"\xc4\x01a"]
)
def test_bare_scalars_are_lost_framing(data: bytes) -> None:
    """Text taken for MessagePack is a row of small integers: the first of them ends it."""
    with pytest.raises(FramingLost):
        list(FrameReader().feed(data))


@pytest.mark.parametrize("data", [b"\xc1", b"\x81\xc1", b"\x81\x90\x01", b"\x92\x01\xc1"])
def test_what_is_not_messagepack_is_lost_framing(data: bytes) -> None:
    with pytest.raises(FramingLost):
        list(FrameReader().feed(data))


def test_many_in_one_read() -> None:
    sent = [{"id": f"r{n}", "text": "x" * (n % 50)} for n in range(3000)]
    assert list(FrameReader(LIMIT).feed(b"".join(map(msgpack.packb, sent)))) == sent


@pytest.mark.parametrize("as_type", [bytes, bytearray, memoryview])
def test_any_buffer_will_do(as_type: type[bytes] | type[bytearray] | type[memoryview]) -> None:
    assert list(FrameReader().feed(as_type(msgpack.packb({"id": "x"})))) == [{"id": "x"}]
