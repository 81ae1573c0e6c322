"""Sessions and preemption on SmolLM2 in a daemon: what is prefilled, what survives, whose answer changes: nobody's."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.harness import Client, Daemon, Map, eventually, is_ack, is_terminal, running, text_of

FLAGS = ("--slots", "2", "--context-size", "2048", "--threads", "1", "--no-http")
QUESTIONS = ("Name a fruit.", "What colour is it?", "Where does it grow?", "Say that again, please.")


@contextmanager
def serving(folder: Path, model: Path, *flags: str) -> Iterator[Daemon]:
    with running(folder, *FLAGS, *flags, model=model, driver="granville-llama") as daemon:
        yield daemon


def ask(client: Client, id: str, text: str, **fields: object) -> Map:
    fields = {"temperature": 0, "max_tokens": 12} | fields
    assert is_ack(client.ask({"id": id, "text": text, **fields}))
    return client.end_of(id)


def held(result: Map) -> int:
    """Tokens that are in the cache after a turn at least: all but the last, which nothing may have followed yet."""
    usage = result["usage"]
    return int(usage["prompt_tokens"] + usage["completion_tokens"] - 1)


def kv_files(folder: Path) -> list[Path]:
    return list((folder / "kv").rglob("session-*.kv"))


class Talks:
    """Conversations that must be prefilled once."""

    def __init__(self, *names: str) -> None:
        self.before: dict[str, Map] = {name: {} for name in names}
        self.turns = 0

    def next_turn(self, daemon: Daemon) -> None:
        question = QUESTIONS[self.turns]
        with daemon.connect() as client:
            for name, before in self.before.items():
                result = ask(client, f"{name}{self.turns}", question, session_id=name)
                if before:
                    usage = result["usage"]
                    assert usage["cached_tokens"] >= held(before)
                    assert usage["prompt_tokens"] - usage["cached_tokens"] < 30
                self.before[name] = result
        self.turns += 1


def test_later_turns_prefill_their_new_tokens_only_also_after_a_restart(folder: Path, smollm2: Path) -> None:
    """More conversations than slots; the daemon is stopped after the second turn and killed after the third."""
    talks = Talks("a", "b", "c")
    with serving(folder, smollm2) as daemon:
        talks.next_turn(daemon)
        talks.next_turn(daemon)
        stats = daemon.status()["models"][0]["driver_stats"]
        assert stats["kv_ram_bytes"] > 0
        assert daemon.stop() == 0
    with serving(folder, smollm2) as daemon:
        assert daemon.status()["sessions"] == 3
        began = time.time()
        talks.next_turn(daemon)
        eventually(lambda: len([p for p in kv_files(folder) if p.stat().st_mtime >= began]) == 3)
        daemon.signal(signal.SIGKILL)
        daemon.wait()
    with serving(folder, smollm2) as daemon:
        talks.next_turn(daemon)
        private = [path for path in (folder / "kv").rglob("*") if path.stat().st_mode & 0o077]
        assert not private


def test_a_conversation_that_is_too_long_goes_on_without_its_beginning(folder: Path, smollm2: Path) -> None:
    """The turn that drops reads what is left again; those after it read their new tokens only."""
    flags = ("--slots", "1", "--context-size", "256", "--threads", "1", "--no-http")
    with running(folder, *flags, model=smollm2, driver="granville-llama") as daemon, daemon.connect() as client:
        before: Map = {}
        dropped = []
        for turn in range(14):
            result = ask(client, f"t{turn}", f"{turn}: {QUESTIONS[turn % 4]}", session_id="s", overflow="drop_oldest")
            usage = result["usage"]
            assert usage["prompt_tokens"] + 12 <= 256
            dropped.append(usage.get("dropped_turns", 0))
            if before and not dropped[-1]:
                assert usage["cached_tokens"] >= held(before)
            before = result
        assert [count % 2 for count in dropped] == [0] * 14
        assert 0 < sum(map(bool, dropped)) <= 3
        whole = ask(client, "whole", "And now?", session_id="s", max_tokens=1)["usage"]
        assert whole["cached_tokens"] >= held(before)
        messages = [{"role": "user", "content": f"{turn}: {QUESTIONS[turn % 4]}"} for turn in range(40)]
        failed = client.ask({"id": "error", "messages": messages, "max_tokens": 1})
        assert client.end_of("error")["code"] == 413, failed


def test_files_that_are_no_kv_are_ignored(folder: Path, smollm2: Path) -> None:
    """Corrupt, truncated, foreign: read again, with the same answer, and said in the log."""
    with serving(folder, smollm2) as daemon, daemon.connect() as client:
        first = ask(client, "1", QUESTIONS[0], session_id="s")
        expected = ask(client, "2", QUESTIONS[1], session_id="s")
        assert daemon.stop() == 0
    (path,) = kv_files(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    path.with_name("session-00.kv").write_bytes(data[: len(data) // 2])
    path.with_name("prefix-00.kv").write_bytes(b"something else")
    with serving(folder, smollm2) as daemon, daemon.connect() as client:
        result = ask(client, "3", QUESTIONS[2], session_id="s")
        assert result["usage"]["cached_tokens"] < held(first)
        assert result["usage"]["prompt_tokens"] > held(expected)
        assert daemon.log.count("kv file ignored") == 3


def test_two_daemons_on_one_folder(folder: Path, smollm2: Path) -> None:
    other = folder / "other"
    other.mkdir()
    with (
        serving(folder, smollm2, "--kv-dir", str(folder / "kv")) as one,
        serving(other, smollm2, "--kv-dir", str(folder / "kv")) as two,
    ):
        assert "another daemon" in two.log
        for daemon in (one, two):
            talks = Talks("a")
            talks.next_turn(daemon)
            talks.next_turn(daemon)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8, "seed": 5}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("tokens", [60, 640, 1500])
def test_a_critical_job_parks_a_low_one_that_ends_as_if_undisturbed(
    preempted: Daemon, tokens: int, sampling: Map
) -> None:
    text = "Go on with this story. " + "The old ship came home from the war with many stories. " * (tokens // 12)
    low = {"text": text, "max_tokens": 24, "stream": True, "priority": "low"} | sampling
    with preempted.connect() as client, preempted.connect() as other:
        client.sock.settimeout(120)
        client.send({"id": "alone", **low})
        expected = client.end_of("alone")
        assert expected["usage"]["prompt_tokens"] > tokens * 0.8
        before = preempted.status()["jobs"]["preemptions"]
        client.send({"id": "parked", **low})
        deltas: list[str] = []
        while len(deltas) < 3:
            message = client.receive()
            deltas += [message["delta"]] if "delta" in message else []
        urgent = ask(other, "urgent", "Say hello.", priority="critical", max_tokens=4)
        assert urgent["priority"] == "critical"
        while not is_terminal(message := client.receive()):
            deltas.append(message["delta"])
        assert text_of(message) == text_of(expected) == "".join(deltas)
        assert preempted.status()["jobs"]["preemptions"] == before + 1


@pytest.fixture(scope="module")
def preempted(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """With one slot."""
    folder = tmp_path_factory.mktemp("p")
    flags = ("--slots", "1", "--context-size", "2048", "--threads", "1", "--no-http")
    with running(folder, *flags, model=smollm2, driver="granville-llama") as daemon:
        yield daemon
