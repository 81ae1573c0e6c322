"""States on their way to disk: turns that follow fast, disks that are slow, full or broken, and the end."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from granville_llama import kvdisk
from granville_llama.kv import KvStore
from granville_llama.kvfiles import KvFiles, Label

from tests.drivers.test_llama_kv import KIB, prompt, run_of, state, wait


def hold_up(store: KvStore) -> threading.Event:
    """Until it is set the file thread does nothing more."""
    assert store._disk is not None
    go_on = threading.Event()
    store._disk._worker.do(lambda: go_on.wait(10), lambda _: None)
    return go_on


def test_a_turn_that_ends_while_the_one_before_is_being_written_keeps_its_file(tmp_path: Path) -> None:
    store = KvStore(64 * KIB, 64 * KIB, KvFiles(tmp_path, "key"))
    go_on = hold_up(store)
    for tokens in (100, 140, 180):
        store.keep(Label(run_of(0, tokens), 40, "talk"), state(fill=tokens))
    go_on.set()
    wait(store)
    wait(store)
    assert [path.stat().st_size for path in tmp_path.glob("*.kv")] == [store.stats()["kv_disk_bytes"]]
    store.close()
    again = KvStore(64 * KIB, 64 * KIB, KvFiles(tmp_path, "key"))
    assert again.find(run_of(0, 300), "talk")[1] == 180
    again.close()


def test_a_file_that_is_being_replaced_does_not_go_for_want_of_room(tmp_path: Path) -> None:
    store = KvStore(64 * KIB, 3 * KIB, KvFiles(tmp_path, "key"))
    store.keep(Label(run_of(0, 100), 40, "talk"), state())
    wait(store)
    go_on = hold_up(store)
    store.keep(Label(run_of(0, 120), 40, "talk"), state())
    assert store._disk is not None
    store._disk.limit = 0
    store._disk.make_room()
    store._disk.limit = 3 * KIB
    go_on.set()
    wait(store)
    wait(store)
    assert len(list(tmp_path.glob("*.kv"))) == store.stats()["kv_files"] == 1
    store.close()


@pytest.mark.parametrize("written", [False, True])
def test_of_a_forgotten_session_no_file_is_left(tmp_path: Path, written: bool) -> None:
    store = KvStore(64 * KIB, 64 * KIB, KvFiles(tmp_path, "key"))
    store.keep(Label(run_of(0, 100), 40, "talk"), state())
    wait(store)
    go_on = hold_up(store)
    if written:  # its file is of an earlier turn, and it is no longer in memory
        assert store._disk is not None
        store._disk._pause_until = float("inf")
        store.keep(Label(run_of(0, 120), 40, "talk"), state())
        store.limit(0)
        assert store.find(run_of(0, 120), "talk") == (None, 0)
    else:
        store.keep(Label(run_of(0, 120), 40, "talk"), state())
    store.forget_session("talk")
    go_on.set()
    wait(store)
    wait(store)
    assert list(tmp_path.glob("*.kv")) == []
    assert store.stats()["kv_disk_bytes"] == 0
    store.close()


def test_what_is_still_on_its_way_to_disk_can_be_had(tmp_path: Path) -> None:
    store = KvStore(0, 64 * KIB, KvFiles(tmp_path, "key"))
    go_on = hold_up(store)
    store.keep(Label(run_of(0, 100), 40, "talk"), state(fill=5))
    saved, _ = store.find(run_of(0, 100), "talk")
    assert saved is not None
    assert saved.state is None
    promise = store.use(saved)
    assert isinstance(promise, Future)
    assert store.use(saved) is promise, "read once for all who want it"
    go_on.set()
    got = promise.result(10)
    assert not isinstance(got, Exception)
    assert set(bytes(got)) == {5}
    store.close()


def test_more_than_may_be_on_its_way_is_written_later_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvdisk, "MAX_UNWRITTEN_BYTES", 2 * KIB)
    store = KvStore(64 * KIB, 64 * KIB, KvFiles(tmp_path, "key"))
    go_on = hold_up(store)
    for index in range(6):
        store.keep(Label(run_of(1000 * index, 100), 40, f"talk {index}"), state())
    for index in range(6):
        store.keep(prompt(10_000 + 1000 * index, 100), state())
    go_on.set()
    for _ in range(4):
        wait(store)
    assert len(list(tmp_path.glob("session*.kv"))) == 6
    assert list(tmp_path.glob("prefix*.kv")) == [], "while there is room in memory"
    store.close()
    assert len(list(tmp_path.glob("*.kv"))) == 12


def test_the_budget_holds_at_the_end_too(tmp_path: Path) -> None:
    store = KvStore(64 * KIB, 5 * KIB, KvFiles(tmp_path, "key"))
    for index in range(12):
        store.keep(prompt(1000 * index, 100), state())
    store.close()
    assert 3 <= len(list(tmp_path.glob("*.kv"))) <= 4
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5 * KIB


def test_a_disk_that_hangs_does_not_hold_up_the_end_and_the_folder_is_free_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kvdisk, "FLUSH_S", 0.05)
    store = KvStore(64 * KIB, 64 * KIB, KvFiles(tmp_path, "key"))
    go_on = hold_up(store)
    store.keep(prompt(0, 100), state())
    store.close()
    assert "slow or full" in caplog.text
    with pytest.raises(BlockingIOError):
        KvFiles(tmp_path, "key")
    go_on.set()
    assert store._disk is not None
    store._disk._worker._thread.join(10)
    KvFiles(tmp_path, "key").close()
    assert list(tmp_path.glob("*.kv")) == [], "too late"


def test_the_very_same_prompt_is_kept_once(tmp_path: Path) -> None:
    store = KvStore(KIB, 64 * KIB, KvFiles(tmp_path, "key"))
    for index in range(12):
        store.keep(prompt(1000 * (index % 3), 100), state(fill=index % 3))
        wait(store)
    assert len(store._known) == store.stats()["kv_files"] == 3
    store.close()


def test_an_error_in_the_file_thread_loses_that_state_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    store = KvStore(0, 64 * KIB, KvFiles(tmp_path, "key"))
    store.keep(Label(run_of(0, 100), 40, "talk"), state())
    wait(store)
    saved, _ = store.find(run_of(0, 100), "talk")
    assert saved is not None
    for name in ("read", "write"):
        monkeypatch.setattr(KvFiles, name, broken)
    promise = store.use(saved)
    assert isinstance(promise, Future)
    assert isinstance(promise.result(10), ZeroDivisionError)
    store.keep(Label(run_of(0, 100), 40, "other"), state())
    wait(store)
    assert "file thread failed" in caplog.text
    assert store.find(run_of(0, 100), None) == (None, 0)
    assert store._disk is not None
    assert store._disk._unwritten_bytes == 0
    assert not store._disk._writing
    store.close()


def test_a_file_that_was_wrong_does_not_take_the_next_one_with_it(tmp_path: Path) -> None:
    store = KvStore(0, 64 * KIB, KvFiles(tmp_path, "key"))
    store.keep(Label(run_of(0, 100), 40, "talk"), state())
    wait(store)
    (path,) = tmp_path.glob("*.kv")
    path.write_bytes(path.read_bytes()[:-1])
    go_on = hold_up(store)
    saved, _ = store.find(run_of(0, 100), "talk")
    assert saved is not None
    store.use(saved)
    store.keep(Label(run_of(0, 120), 40, "talk"), state())
    go_on.set()
    wait(store)
    wait(store)
    assert path.stat().st_size == store.stats()["kv_disk_bytes"] > 0
    assert store.find(run_of(0, 120), "talk")[1] == 120
    store.close()
