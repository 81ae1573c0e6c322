"""Models that read: what their vectors say, and that a text's neighbours do not change it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import pytest
from granville_llama import LlamaDriver
from granville_llama.binding import c
from granville_llama.embedding import BATCH_TOKENS, EmbeddingModel

from examples.models.minilm import Shape
from granville.hosting.interface import (
    DriverError,
    Embed,
    Failed,
    Generate,
    Message,
    Model,
    ModelSpec,
    Output,
    Rerank,
    Task,
)
from tests.drivers import bert_gguf
from tests.drivers.bert_reference import Reference

Vector = list[float]
ROUNDING = 3e-4
"""Of a number in a vector of length 1: half-precision weights are multiplied in another order in another batch."""
TEXTS = tuple(f"the {animal} {verb} on a {colour} mat" for animal in ("cat", "dog") for verb in ("sat", "ran")
              for colour in ("red", "blue"))  # fmt: skip


def load(
    path: Path, type: str = "embedding", *, slots: int = 4, context_size: int = 0, threads: int = 1, **options: object
) -> Model:
    return LlamaDriver().load(
        ModelSpec(path, slots=slots, context_size=context_size, threads=threads, type=type, options=options)
    )


@dataclass
class Ends:
    steps: int = 0
    by_id: dict[str, Output | Failed] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)


def run(model: Model, *tasks: Task) -> Ends:
    """All tasks to their ends, which must be one each."""
    ends = Ends()
    for task in tasks:
        model.submit(task)
    while len(ends.by_id) < len(tasks):
        ends.steps += 1
        assert ends.steps < 1000
        for event in model.step(None):
            assert isinstance(event, Output | Failed)
            assert event.id not in ends.by_id
            ends.by_id[event.id] = event
            ends.order.append(event.id)
    assert model.step(None) == []
    return ends


def vectors(model: Model, *texts: str) -> list[Vector]:
    end = run(model, Embed("x", texts)).by_id["x"]
    assert isinstance(end, Output), end
    assert all(isinstance(row, list) for row in end.value)
    return end.value  # type: ignore[return-value]  # as was just seen


def scores(model: Model, query: str, *documents: str) -> Vector:
    end = run(model, Rerank("x", query, documents)).by_id["x"]
    assert isinstance(end, Output), end
    assert all(isinstance(score, float) for score in end.value)
    return end.value  # type: ignore[return-value]  # as was just seen


def cosine(one: Vector, other: Vector) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def near(one: Vector, other: Vector) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) < ROUNDING


@pytest.fixture(scope="module")
def tiny(models: Path) -> Path:
    return bert_gguf.tiny(models / "bert.gguf", pooling=gguf.PoolingType.MEAN)


@pytest.fixture(scope="module")
def reranker(models: Path) -> Path:
    return bert_gguf.tiny(models / "reranker.gguf", pooling=gguf.PoolingType.RANK, classifier=True)


def test_minilm_puts_like_beside_like(minilm: Path) -> None:
    model = load(minilm)
    assert (model.info.architecture, model.info.context_size) == ("bert", 512)
    pairs = [
        ("A cat is sitting on the mat.", "A kitten rests on a rug."),
        ("How do I reset my password?", "I forgot my login credentials."),
        ("The central bank raised interest rates.", "Borrowing money has become more expensive."),
        ("It will rain all day tomorrow.", "The forecast says wet weather."),
    ]
    rows = vectors(model, *(text for pair in pairs for text in pair))
    assert all(len(row) == 384 and math.isclose(cosine(row, row), 1, rel_tol=1e-6) for row in rows)
    for index, row in enumerate(rows):
        nearest = max((other for other in range(len(rows)) if other != index), key=lambda at: cosine(row, rows[at]))
        assert nearest == index ^ 1, "its paraphrase"
    model.close()


def test_vectors_are_those_of_the_paper(minilm: Path) -> None:
    """Of texts that are read in several batches, from nothing to more than a batch."""
    texts = ("", "Rain.", "Don't panic: it's 42% off!", "uncharacteristically antediluvian", *TEXTS, "word " * 150)
    model, reference = load(minilm), Reference(minilm)
    end = run(model, Embed("x", texts)).by_id["x"]
    assert isinstance(end, Output)
    assert end.usage.prompt_tokens == sum(len(reference.words(text)) + 2 for text in texts)
    for row, text in zip(end.value, texts, strict=True):
        assert cosine(row, reference.embed(text)) > 0.9999, text  # type: ignore[arg-type]  # rows, as its task is
    model.close()


def test_a_vector_does_not_depend_on_its_neighbours(minilm: Path) -> None:
    model = load(minilm)
    together = vectors(model, *TEXTS)
    alone = [vectors(model, text)[0] for text in TEXTS]
    backwards = vectors(model, *reversed(TEXTS))[::-1]
    assert all(near(a, b) and near(a, c) for a, b, c in zip(together, alone, backwards, strict=True))
    assert vectors(model, TEXTS[0]) == [alone[0]], "the same work gives the same numbers"
    assert not near(alone[0], alone[1])
    model.close()


def test_names_of_control_tokens_are_text(minilm: Path) -> None:
    """Read as a token, [SEP] would be one; as text it is three words between [CLS] and [SEP]."""
    model = load(minilm)
    ends = run(model, Embed("marks", ("[SEP]",)), Embed("words", ("[ sep ]",)), Embed("nothing", ("",))).by_id
    counts = {id: end.usage.prompt_tokens for id, end in ends.items() if isinstance(end, Output)}
    assert counts == {"marks": 5, "words": 5, "nothing": 2}
    (marks,), (words,) = vectors(model, "[SEP]"), vectors(model, "[ sep ]")
    assert near(marks, words)
    model.close()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_can_be_chosen(tiny: Path, pooling: str) -> None:
    by_file, chosen, reference = load(tiny), load(tiny, pooling=pooling), Reference(tiny)
    rows = vectors(chosen, *TEXTS)
    assert all(cosine(row, reference.embed(text, pooling)) > 0.9999 for row, text in zip(rows, TEXTS, strict=True))
    assert near(rows[0], vectors(by_file, TEXTS[0])[0]) == (pooling == "mean"), "the file says mean"
    by_file.close()
    chosen.close()


def test_a_model_that_generates_can_give_vectors(noise: Path) -> None:
    """Its last token has seen the whole text; the mean of all is another vector."""
    last, mean = load(noise), load(noise, pooling="mean")
    rows = vectors(last, *TEXTS)
    assert all(near(row, vectors(last, text)[0]) for row, text in zip(rows, TEXTS, strict=True))
    assert not near(rows[0], vectors(mean, TEXTS[0])[0])
    assert vectors(last, "") == vectors(last, "")
    last.close()
    mean.close()


def test_a_step_is_a_bounded_batch_and_jobs_take_turns(tiny: Path) -> None:
    model = load(tiny)
    many = Embed("many", TEXTS * 20)
    ends = run(model, many, Embed("few", TEXTS[:2]))
    tokens = ends.by_id["many"].usage.prompt_tokens  # type: ignore[union-attr]  # a failed one has none and ends here
    assert ends.steps >= tokens / BATCH_TOKENS
    assert ends.order == ["few", "many"]
    assert model.stats() == {"threads": 1, "texts_waiting": 0}
    model.close()


def test_a_job_can_be_cancelled_between_steps(tiny: Path) -> None:
    model = load(tiny, slots=2)
    model.submit(Embed("gone", TEXTS * 20))
    assert model.step(None) == []
    model.submit(Embed("kept", TEXTS))
    with pytest.raises(DriverError, match="slots"):
        model.submit(Embed("third", TEXTS))
    model.cancel("gone")
    model.cancel("gone")
    ends = [event for _ in range(10) for event in model.step(None)]
    assert [(type(end), end.id) for end in ends] == [(Output, "kept")]
    model.close()


def test_an_interrupted_batch_is_read_again(minilm: Path) -> None:
    model = load(minilm)
    assert isinstance(model, EmbeddingModel)
    expected = vectors(model, *TEXTS)
    model.submit(Embed("x", TEXTS))
    rearm = model._reader.rearm
    model._reader.rearm = model.interrupt  # type: ignore[method-assign]  # as if it came just after the step's start
    for _ in range(6):
        assert model.step(None) == []
    model._reader.rearm = rearm  # type: ignore[method-assign]
    (end,) = (event for _ in range(10) for event in model.step(None))
    assert isinstance(end, Output)
    assert all(map(near, end.value, expected))  # type: ignore[arg-type]
    model.close()


def test_cores_are_left_to_others_and_what_is_said_stays(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("granville_llama.loading.usable_cores", lambda: 2)
    model, expected = load(minilm, threads=0), load(minilm)
    assert isinstance(model, EmbeddingModel)
    assert model.stats()["threads"] == 2
    told: list[tuple[float, float]] = []

    def after(seconds: float, usual: float) -> bool:
        told.append((seconds, usual))
        return True

    monkeypatch.setattr(model._crew, "after", after)
    monkeypatch.setattr(model._crew._governor, "before", lambda now: 1)
    monkeypatch.setattr(model._crew._governor, "begin", lambda foreign: None)  # whatever else runs just now
    for _ in range(3):
        assert all(map(near, vectors(model, *TEXTS), vectors(expected, *TEXTS)))
    assert c.llama_n_threads(model._reader._handle) == c.llama_n_threads_batch(model._reader._handle) == 1
    assert told[0][1] == 0, "nothing is known of the first"
    assert told[1][1] == pytest.approx(told[0][0]), "the second has as much to read"
    model.close()
    expected.close()


def test_a_text_over_the_context_fails_alone(minilm: Path) -> None:
    model = load(minilm)
    ends = run(model, Embed("long", ("short", "word " * 511)), Embed("longest", ("word " * 510,)))
    failed = ends.by_id["long"]
    assert isinstance(failed, Failed)
    assert (failed.error, failed.message) == ("prompt_too_long", "text 2 of 2 has 513 tokens and the context 512")
    assert isinstance(ends.by_id["longest"], Output)
    model.close()


@pytest.mark.parametrize(("asked", "got"), [(2, 2), (40, 40), (100_000, 64)])
def test_a_context_is_never_more_than_the_model_has_positions_for(tiny: Path, asked: int, got: int) -> None:
    model = load(tiny, context_size=asked)
    assert model.info.context_size == got
    ends = run(model, Embed("fits", ("cat " * (got - 2),)), Embed("too long", ("cat " * (got - 1),))).by_id
    assert {id: type(end) for id, end in ends.items()} == {"fits": Output, "too long": Failed}
    model.close()


def test_a_reranker_scores_every_document(reranker: Path) -> None:
    model = load(reranker, "rerank")
    assert model.capabilities.types == {"rerank"}
    query = "the red cat"
    together = scores(model, query, *TEXTS)
    reference = Reference(reranker)
    assert together == pytest.approx([reference.score(query, text) for text in TEXTS], abs=1e-3)
    assert max(together) - min(together) > 0.1, "else any numbers would do"
    assert scores(model, query, *reversed(TEXTS))[::-1] == pytest.approx(together, abs=ROUNDING)
    alone = [scores(model, query, text)[0] for text in TEXTS]
    assert alone == pytest.approx(together, abs=ROUNDING)
    assert scores(model, "a blue dog", *TEXTS) != pytest.approx(together, abs=ROUNDING), "the query counts"
    assert scores(model, query) == []
    ends = run(model, Rerank("long", "cat " * 40, ("dog", "dog " * 40))).by_id
    assert ends["long"] == Failed(
        "long", "prompt_too_long", "document 2, with the query, has 83 tokens and the context 64"
    )
    model.close()


def test_a_task_of_another_kind_is_refused(tiny: Path) -> None:
    model = load(tiny)
    ends = run(model, Rerank("x", "cat", ("dog",)), Generate("y", (Message("user", "cat"),))).by_id
    assert {id: end.error for id, end in ends.items() if isinstance(end, Failed)} == dict.fromkeys("xy", "unsupported")
    model.close()


@pytest.mark.parametrize(
    ("file", "type", "options", "words"),
    [
        ("bert.gguf", "inference", {}, ("type bert", "generates no text", "serve it as embedding:")),
        ("reranker.gguf", "inference", {}, ("generates no text", "serve it as rerank:")),
        ("bert.gguf", "rerank", {}, ("no reranker", "serve it as embedding:")),
        ("reranker.gguf", "embedding", {}, ("is a reranker", "serve it as rerank:", "pooling")),
        ("bert.gguf", "stt", {}, ("type", "inference, ranker, embedding, rerank", "stt")),
        ("bert.gguf", "embedding", {"pooling": "rank"}, ("pooling", "mean, cls, last", "'rank'")),
        ("reranker.gguf", "rerank", {"pooling": "mean"}, ("pooling", "only for type embedding")),
    ],
)
def test_a_model_of_the_wrong_type(
    models: Path, tiny: Path, reranker: Path, file: str, type: str, options: Mapping[str, object],
    words: tuple[str, ...],
) -> None:  # fmt: skip
    with pytest.raises(DriverError) as caught:
        load(models / file, type, **options)  # type: ignore[arg-type]  # none of them is load's own
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_rerankers_body_gives_vectors_when_asked(reranker: Path) -> None:
    model = load(reranker, pooling="mean")
    assert len(vectors(model, "cat")[0]) == Shape().size
    model.close()
