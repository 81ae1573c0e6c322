"""The whole of it on SmolLM2: what the text says is the model's affair, that it arrives whole is ours."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Daemon, Map, eventually, granville, is_ack, is_terminal, running, text_of, words

FLAGS = ("--slots", "2", "--context-size", "512", "--threads", "1")
"""One thread: with more, what else runs on the machine decides how long a step takes."""


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> Iterator[Daemon]:
    with (
        tempfile.TemporaryDirectory(prefix="granville-", dir="/tmp") as path,
        running(Path(path), *FLAGS, model=smollm2, driver="granville-llama") as daemon,
    ):
        yield daemon
        assert daemon.stop() == 0
        assert daemon.log == ""


def ask(id: str, text: str, **fields: object) -> Map:
    return {"id": id, "text": text, "temperature": 0, "max_tokens": 12} | fields


def test_streams_together_say_what_they_say_alone(smol: Daemon) -> None:
    """Greedy answers, one at a time and then all at once, with more of them than slots."""
    questions = {f"q-{n}": f"Tell me something about the number {n}." for n in range(4)}
    alone = {}
    with smol.connect() as client:
        for id, question in questions.items():
            assert is_ack(client.ask(ask(id, question)))
            alone[id] = text_of(client.receive())
        client.send(*(ask(id, question, stream=True) for id, question in questions.items()))
        streamed = dict.fromkeys(questions, "")
        ended: dict[str, Map] = {}
        while len(ended) < len(questions):
            message = client.receive()
            if is_terminal(message):
                ended[message["id"]] = message
            elif not is_ack(message):
                streamed[message["id"]] += message["delta"]
    assert {id: text_of(result) for id, result in ended.items()} == streamed == alone
    assert all(alone.values())
    for result in ended.values():
        assert result["usage"]["completion_tokens"] <= 12
        assert result["usage"]["prompt_tokens"] > 10
        assert result["finish_reason"] in ("stop", "length")


def test_a_seed_makes_an_answer_again(smol: Daemon) -> None:
    def answer(seed: int) -> str:
        return smol.answer("Tell me a story.", temperature=1.5, seed=seed, max_tokens=12)

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(3)}) > 1


def test_stop_strings_end_an_answer_and_are_not_in_it(smol: Daemon) -> None:
    whole = smol.answer("Count from one to ten.", temperature=0, max_tokens=12)
    stop = whole[len(whole) // 2 :][:3]
    with smol.connect() as client:
        assert is_ack(client.ask(ask("stops", "Count from one to ten.", stop=[stop])))
        result = client.receive()
    assert result["finish_reason"] == "stop"
    assert text_of(result) == whole[: whole.index(stop)]


def test_a_prompt_longer_than_the_context(smol: Daemon) -> None:
    with smol.connect() as client:
        assert is_ack(client.ask(ask("long", words(600))))
        ended = client.receive()
    assert (ended["id"], ended["error"], ended["code"]) == ("long", "prompt_too_long", 413)
    assert "512" in ended["message"]


def test_an_answer_that_is_cancelled_leaves_its_slot(smol: Daemon) -> None:
    with smol.connect() as client:
        assert is_ack(client.ask(ask("cut", "Write a long story.", max_tokens=400, stream=True)))
        assert "delta" in client.receive()
        assert smol.ask({"op": "cancel", "id": "cut"}) == {"id": "cut", "state": "cancelled"}
        assert client.end_of("cut")["error"] == "cancelled"
    eventually(lambda: smol.status()["models"][0]["running"] == 0)


def test_the_command_line(smol: Daemon, folder: Path) -> None:
    at = ("-s", str(smol.socket))
    plain = granville(folder, "submit", "Say hello.", "--temperature", "0", "--max-tokens", "16", *at)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.strip()
    streamed = granville(folder, "submit", "Say hello.", "--temperature", "0", "--max-tokens", "16", "--stream", *at)
    assert streamed.stdout == plain.stdout
    (model,) = json.loads(granville(folder, "status", "--json", *at).stdout)["models"]
    assert model["architecture"] == "llama"
    assert model["context_size"] == 512
    assert model["tokens_per_s"] > 0
