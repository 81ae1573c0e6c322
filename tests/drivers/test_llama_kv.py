"""The store of KV states: what it finds, what goes first, and what becomes of its files."""

from __future__ import annotations

import os
import random
import stat
from concurrent.futures import Future
from pathlib import Path

import pytest
from granville_llama.binding import State, as_state
from granville_llama.kv import KvStore
from granville_llama.kvfiles import KvFileError, KvFiles, Label
from granville_llama.prefix import BLOCK_TOKENS, PrefixIndex, shared_beginning
from granville_llama.saved import ByValue, Saved

KIB = 1024


def state(size: int = KIB, fill: int = 1) -> State:
    return as_state(bytearray([fill]) * size)


def run_of(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def prompt(first: int, count: int) -> Label:
    return Label(run_of(first, count), count, None)


def wait(store: KvStore) -> None:
    """Until the file thread has done what it was asked."""
    assert store._disk is not None
    assert store._disk.wait(10)


@pytest.fixture
def files(tmp_path: Path) -> KvFiles:
    return KvFiles(tmp_path / "kv", "key")


def test_shared_beginnings_are_those_of_a_naive_comparison() -> None:
    rng = random.Random(1)
    for _ in range(500):
        one = [rng.randrange(2) for _ in range(rng.randrange(12))]
        other = one[: rng.randrange(12)] + [rng.randrange(2) for _ in range(rng.randrange(6))]
        naive = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        assert shared_beginning(one, other) == naive


def test_the_index_gives_whoever_shares_the_most_blocks() -> None:
    index: PrefixIndex[str] = PrefixIndex()
    common = run_of(0, BLOCK_TOKENS)
    index.add("short", common)
    index.add("long", common + run_of(500, BLOCK_TOKENS))
    assert index.nearest(common + run_of(500, BLOCK_TOKENS + 5)) == ["long"]
    assert index.nearest(common + run_of(900, 64)) == ["short", "long"]
    assert index.nearest(run_of(1, 99)) == []
    assert index.nearest(common[:-1]) == [], "no whole block"
    index.remove("long", common + run_of(500, BLOCK_TOKENS))
    assert index.nearest(common + run_of(500, 64)) == ["short"]
    index.remove("short", common)
    assert not index._blocks


def test_what_was_generated_serves_its_own_session_alone() -> None:
    store = KvStore(KIB * 8)
    label = Label(run_of(0, 100), 40, "talk")
    store.keep(label, state())
    for session, usable in (("talk", 100), ("other", 40), (None, 40)):
        saved, found = store.find(run_of(0, 120), session)
        assert (saved is not None, found) == (True, usable)
    assert store.find(run_of(0, 70), "talk")[1] == 70
    store.forget_session("talk")
    assert store.find(run_of(0, 120), "talk") == (None, 0)
    assert store.ram_bytes == 0


def test_a_session_has_one_state() -> None:
    store = KvStore(KIB * 8)
    for turn in range(1, 5):
        store.keep(Label(run_of(0, 50 * turn), 40, "talk"), state())
    assert store.ram_bytes == KIB
    assert store.find(run_of(0, 300), "talk")[1] == 200


def test_the_cheapest_to_compute_again_goes_first_and_parked_states_last() -> None:
    store = KvStore(4 * KIB)
    store.park("job", state())
    for first, count in ((0, 400), (1000, 64), (2000, 300)):
        store.keep(prompt(first, count), state())
    assert store.ram_bytes == 4 * KIB
    store.keep(prompt(3000, 200), state())
    assert store.find(run_of(1000, 64), None) == (None, 0), "64 tokens in as many bytes as 400"
    assert [store.find(run_of(first, count), None)[1] for first, count in ((0, 400), (2000, 300), (3000, 200))] == [
        400, 300, 200,
    ]  # fmt: skip
    store.limit(KIB)
    assert store.find(run_of(0, 400), None) == (None, 0)
    assert store.ram_bytes == KIB
    store.limit(0)
    assert store.unpark("job") is None
    assert store.ram_bytes == 0


def test_what_is_used_stays_and_what_is_not_ages() -> None:
    store = KvStore(3 * KIB)
    store.keep(prompt(0, 300), state())
    store.keep(prompt(1000, 300), state())
    for round in range(6):
        saved, _ = store.find(run_of(1000, 300), None)
        assert saved is not None
        store.use(saved)
        for new in range(2):
            store.keep(prompt(10_000 * (round + 1) + 1000 * new, 280), state())
    assert store.find(run_of(1000, 300), None)[1] == 300
    assert store.find(run_of(0, 300), None)[1] == 0


def test_files_give_back_what_was_written_and_are_private(files: KvFiles, tmp_path: Path) -> None:
    label = Label(run_of(7, 33), 20, "talk/../é")
    size = files.write(label, bytes(range(256)))
    ((name, bytes_on_disk, _, found),) = list(files.scan())
    assert found == label
    path = tmp_path / "kv" / name
    assert size == bytes_on_disk == path.stat().st_size
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert files.read(label) == bytes(range(256))


@pytest.mark.parametrize("at", [0, 9, 20, 200, -40, -1])
def test_a_flipped_byte_anywhere_is_noticed(files: KvFiles, tmp_path: Path, at: int) -> None:
    label = prompt(0, 40)
    files.write(label, bytes(1000))
    path = tmp_path / "kv" / files.name(label)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(KvFileError):
        files.read(label)
    assert not path.exists()


@pytest.mark.parametrize("keep", [0, 3, 11, 40, 150, -1])
def test_a_truncated_file_is_removed(
    files: KvFiles, tmp_path: Path, keep: int, caplog: pytest.LogCaptureFixture
) -> None:
    label = prompt(0, 40)
    files.write(label, bytes(1000))
    path = tmp_path / "kv" / files.name(label)
    path.write_bytes(path.read_bytes()[:keep])
    assert list(files.scan()) == []
    assert not path.exists()
    assert "ignored" in caplog.text


def test_files_of_another_key_are_left_alone_and_of_other_tokens_refused(files: KvFiles, tmp_path: Path) -> None:
    files.write(Label(run_of(0, 40), 40, "talk"), bytes(10))
    with pytest.raises(KvFileError, match="other tokens"):
        files.read(Label(run_of(0, 39), 39, "talk"))
    with pytest.raises(KvFileError, match="other tokens"):
        files.read(Label(run_of(0, 40), 30, "talk"))
    files.close()
    foreign = KvFiles(tmp_path / "kv", "other key")
    assert [label for *_, label in foreign.scan()] == [None]
    foreign.close()


def test_a_folder_belongs_to_one_process_at_a_time(files: KvFiles, tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError):
        KvFiles(tmp_path / "kv", "key")
    files.close()
    KvFiles(tmp_path / "kv", "key").close()


def test_states_outlive_the_process_that_made_them(tmp_path: Path) -> None:
    first = KvStore(4 * KIB, 64 * KIB, KvFiles(tmp_path, "key"))
    first.keep(Label(run_of(0, 100), 40, "talk"), state(fill=7))
    first.keep(prompt(5000, 80), state(fill=8))
    first.close()
    second = KvStore(4 * KIB, 64 * KIB, KvFiles(tmp_path, "key"))
    for tokens, session, fill in ((run_of(0, 100), "talk", 7), (run_of(5000, 80), None, 8)):
        saved, usable = second.find(tokens, session)
        assert usable == len(tokens)
        assert saved is not None
        promise = second.use(saved)
        assert isinstance(promise, Future)
        got = promise.result(10)
        assert not isinstance(got, Exception)
        assert bytes(got) == bytes([fill]) * KIB
    second.poll()
    saved, _ = second.find(run_of(5000, 80), None)
    assert saved is not None
    assert saved.state is not None, "it is in memory now"
    second.close()


def test_a_state_that_memory_has_no_room_for_is_on_disk(tmp_path: Path) -> None:
    store = KvStore(KIB, 64 * KIB, KvFiles(tmp_path, "key"))
    for index in range(5):
        store.keep(prompt(1000 * index, 100), state(fill=index))
    wait(store)
    assert store.ram_bytes <= KIB
    for index in range(5):
        saved, usable = store.find(run_of(1000 * index, 100), None)
        assert saved is not None
        assert usable == 100
        got = store.use(saved)
        assert got is not None
        content = got.result(10) if isinstance(got, Future) else got
        assert not isinstance(content, Exception)
        assert set(bytes(content)) == {index}
        wait(store)
    store.close()


def test_the_disk_has_a_budget(tmp_path: Path) -> None:
    store = KvStore(0, 5 * KIB, KvFiles(tmp_path, "key"))
    for index in range(12):
        store.keep(prompt(1000 * index, 40), state())
        wait(store)
    wait(store)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.kv")) <= 5 * KIB
    assert store.stats()["kv_files"] == len(list(tmp_path.glob("*.kv"))) == 3
    assert store.find(run_of(11_000, 40), None)[1] == 40
    assert store.find(run_of(0, 40), None)[1] == 0
    store.close()


def test_a_full_disk_costs_no_more_than_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = KvStore(4 * KIB, 64 * KIB, KvFiles(tmp_path, "key"))

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        store.keep(Label(run_of(0, 100), 40, "talk"), state())
        wait(store)
    assert "No space left" in caplog.text
    assert store.find(run_of(0, 100), "talk")[1] == 100, "in memory all the same"
    assert list(tmp_path.glob("*.part")) == []
    store.keep(Label(run_of(0, 120), 40, "talk"), state())
    wait(store)
    assert list(tmp_path.glob("*.kv")) == [], "not tried again at once"
    assert store._disk is not None
    store._disk._pause_until = 0
    store.close()
    assert len(list(tmp_path.glob("*.kv"))) == 1


def test_a_state_larger_than_the_memory_costs_the_others_nothing() -> None:
    store = KvStore(4 * KIB)
    store.park("job", state())
    for index in range(3):
        store.keep(prompt(1000 * index, 64), state())
    store.keep(prompt(9000, 5000), state(4 * KIB))
    store.park("large", state(5 * KIB))
    assert store.unpark("large") is None
    assert [store.find(run_of(1000 * index, 64), None)[1] for index in range(3)] == [64, 64, 64]
    assert store.find(run_of(9000, 5000), None) == (None, 0)
    assert store.unpark("job") is not None


def test_headers_that_are_not_ours_are_passed_over(files: KvFiles, tmp_path: Path) -> None:
    files.write(prompt(0, 40), bytes(1000))
    (path,) = (tmp_path / "kv").glob("*.kv")
    good = path.read_bytes()
    for before, after in (
        (b'"pure": 40', b'"pure": 41'), (b'"pure": 40', b'"pure": -4'), (b'"pure": 40', b'"pure":4.0'),
        (b'"pure": 40', b'"pure":"4"'), (b'"tokens": 40, ', b'"tokens":9999,'), (good[12:64], b"[" * 52),
    ):  # fmt: skip
        assert len(before) == len(after)
        path.write_bytes(good.replace(before, after))
        assert list(files.scan()) == [], after
        assert not path.exists()


def test_what_goes_first_is_found_as_a_plain_search_finds_it() -> None:
    rng = random.Random(2)
    ranking = ByValue()
    states: list[Saved] = []
    for number in range(2000):
        chance = rng.random()
        if chance < 0.4 or not states:
            saved = Saved(prompt(number, 1), 1)
            saved.value = rng.randrange(50)
            states.append(saved)
            ranking.add(saved)
        elif chance < 0.7:
            rng.choice(states).value += rng.randrange(20)
        elif chance < 0.9:
            saved = rng.choice(states)
            states.remove(saved)
            ranking.discard(saved)
        if states:
            assert ranking.least().value == min(saved.value for saved in states)
        assert len(ranking) == len(states)
        assert len(ranking._heap) <= 2 * len(states) + 100


def test_a_session_is_given_its_own_words_before_more_of_what_another_read() -> None:
    store = KvStore(KIB * 8)
    store.keep(Label(run_of(0, 100), 40, "talk"), state())
    store.keep(prompt(0, 300), state())
    assert store.find(run_of(0, 300), "talk")[1] == 100
    assert store.find(run_of(0, 300), "other")[1] == 300
    store.keep(Label(run_of(0, 41), 41, "talk"), state())
    assert store.find(run_of(0, 300), "talk")[1] == 300
