"""Models of several types in one daemon, over the socket: vectors, scores and streams beside each other."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from tests.drivers import bert_gguf
from tests.e2e.harness import Daemon, Map, granville, is_ack, running, text_of

FLAGS = ("--slots", "2", "--context-size", "256", "--threads", "1")
LIKE = ("A cat sleeps on the sofa.", "The kitten naps on a couch.")
OTHER = "The central bank raised interest rates."


@pytest.fixture(scope="module")
def several(smollm2: Path, minilm: Path) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="granville-", dir="/tmp") as path:
        folder = Path(path)
        reranker = bert_gguf.tiny(folder / "rr.gguf", pooling=gguf.PoolingType.RANK, classifier=True)
        models = f"embedding:minilm:{minilm},rerank:rr:{reranker},main:{smollm2}"
        with running(folder, *FLAGS, model=models, driver="granville-llama") as daemon:
            yield daemon
            assert daemon.stop() == 0
            assert "level=ERROR" not in daemon.log


def embed(id: str, *texts: str, **fields: object) -> Map:
    return {"id": id, "model_type": "embedding", "documents": list(texts), **fields}


def rerank(id: str, query: str, *documents: str) -> Map:
    return {"id": id, "model_type": "rerank", "text": query, "documents": list(documents)}


def product(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_each_is_listed_with_its_type_and_its_own_context(several: Daemon) -> None:
    listing = {model["id"]: (model["type"], model["context_size"]) for model in several.ask({"op": "models"})["models"]}
    assert listing == {"minilm": ("embedding", 256), "rr": ("rerank", 64), "main": ("inference", 256)}
    assert "asked=256 context_size=64" in several.log, (
        "what a model was not trained for it does not get, and that is said"
    )


def test_vectors_scores_and_a_stream_at_once(several: Daemon) -> None:
    with several.connect() as client:
        client.send(
            {"id": "chat", "text": "Tell me a story.", "max_tokens": 12, "temperature": 0},
            embed("all", *LIKE, OTHER),
            {"id": "one", "model_type": "embedding", "text": LIKE[0]},
            *(embed(f"crowd-{n}", *[f"{word} {n}" for word in LIKE]) for n in range(8)),
            rerank("rank", "the red cat", "the cat sat", "a blue dog"),
        )
        ended = client.terminals(12)
    assert {end["model_id"] for id, end in ended.items() if "crowd" in id} == {"minilm"}
    like, liked, other = ended["all"]["output"]
    assert [len(row) for row in (like, liked, other)] == [384] * 3
    assert product(like, like) == pytest.approx(1, abs=1e-6)
    assert product(like, liked) > 0.5 > product(like, other) + 0.2
    assert product(ended["one"]["output"], like) > 0.9999
    assert (ended["rank"]["tool_id"], len(ended["rank"]["output"])) == ("__rerank__", 2)
    assert text_of(ended["chat"]) == several.answer("Tell me a story.", max_tokens=12, temperature=0)


def test_a_text_that_is_too_long_is_named_and_costs_no_other(several: Daemon) -> None:
    with several.connect() as client:
        client.send(embed("long", "short", "word " * 300), embed("well", ""))
        ended = client.terminals(2)
    assert (ended["long"]["error"], ended["long"]["code"]) == ("prompt_too_long", 413)
    assert "text 2 of 2 has 302 tokens and the context 256" in ended["long"]["message"]
    assert len(ended["well"]["output"][0]) == 384


def test_a_thousand_texts_in_one_request(several: Daemon) -> None:
    with several.connect() as client:
        assert is_ack(client.ask(embed("many", *(f"{n}" for n in range(1024)))))
        client.send(embed("few", "0"))
        assert is_ack(client.receive())
        few, many = client.receive(), client.receive()
        assert (few["id"], many["id"]) == ("few", "many"), "texts take turns"
        assert len(many["output"]) == 1024
        assert product(few["output"][0], many["output"][0]) > 0.9999
        refused = client.ask(embed("more", *(["x"] * 1025)))
        assert (refused["code"], "1024" in refused["message"]) == (400, True)


def test_the_command_line(several: Daemon, folder: Path) -> None:
    at = ("-s", str(several.socket))
    vector = granville(folder, "submit", LIKE[0], "--type", "embedding", *at)
    assert vector.returncode == 0, vector.stderr
    assert len(json.loads(vector.stdout)) == 384
    ranked = granville(folder, "submit", "cat", "--type", "rerank", "--document", "dog", "--document", "the cat", *at)
    scores = [float(line.split("\t")[0]) for line in ranked.stdout.splitlines()]
    assert scores == sorted(scores, reverse=True)
    assert {line.split("\t")[1] for line in ranked.stdout.splitlines()} == {"dog", "the cat"}
