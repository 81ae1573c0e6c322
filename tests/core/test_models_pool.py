"""`[type:][id:]path[?driver=NAME]`, and the ids of models that were given none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.errors import StartupError
from granville.models.identity import model_id
from granville.models.pool import MAX_MODELS, Wanted, ids, parse_model, parse_models

CASES = [
    ("smollm2", Wanted("smollm2")),
    (" tiny.gguf ", Wanted("tiny.gguf")),
    ("ranker:tiny.gguf", Wanted("tiny.gguf", "ranker")),
    ("main:llama7b.gguf", Wanted("llama7b.gguf", None, "main")),
    ("embedding:mini:/m/a.gguf", Wanted("/m/a.gguf", "embedding", "mini")),
    ("inference:inference.gguf", Wanted("inference.gguf", "inference")),
    ("pypi://p==1.0/a/b.gguf", Wanted("pypi://p==1.0/a/b.gguf")),
    ("rerank:pypi://p==1/b.gguf", Wanted("pypi://p==1/b.gguf", "rerank")),
    ("ranker:x.y-z_1:https://h:8/a.gguf#sha256=ab", Wanted("https://h:8/a.gguf#sha256=ab", "ranker", "x.y-z_1")),
    ("hf://owner/repo/f.gguf", Wanted("hf://owner/repo/f.gguf")),
    ("/a:b/c.gguf", Wanted("/a:b/c.gguf")),
    ("./ab:c.gguf", Wanted("./ab:c.gguf")),
    ("a:b.gguf", Wanted("a:b.gguf")),
    (r"C:\m.gguf", Wanted(r"C:\m.gguf")),
    ("a.gguf?driver=acme-granville-x", Wanted("a.gguf", None, None, "acme-granville-x")),
    ("stt:wh:a.bin?driver=my.module:Driver", Wanted("a.bin", "stt", "wh", "my.module:Driver")),
    ("https://h/a?x=1&driver=no", Wanted("https://h/a?x=1&driver=no")),
    (r"a\,b.gguf", Wanted("a,b.gguf")),
]


@pytest.mark.parametrize(("text", "wanted"), CASES)
def test_what_was_typed(text: str, wanted: Wanted) -> None:
    assert parse_model(text) == wanted


@pytest.mark.parametrize(("text", "wanted"), CASES)
def test_it_can_be_written_as_it_is_read(text: str, wanted: Wanted) -> None:
    assert parse_model(wanted.text) == wanted


def test_lists_by_commas_and_by_words() -> None:
    texts = [text for text, _ in CASES[:4]]
    expected = [wanted for _, wanted in CASES[:4]]
    assert parse_models([",".join(texts)]) == parse_models(texts) == parse_models([texts[0], ",".join(texts[1:])])
    assert parse_models(texts) == expected
    assert parse_models([r"a\,b.gguf,c.gguf"]) == [Wanted("a,b.gguf"), Wanted("c.gguf")]
    assert parse_models(["a.gguf,a.gguf"]) == [Wanted("a.gguf")] * 2
    assert parse_models([]) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.gguf,", "a model is missing"),
        ("ranker:", "ranker:: a model is missing"),
        ("main:", "a model is missing"),
        ("embedding:ranker:a.gguf", "ranker is a type, not an id"),
        ("..:a.gguf", "cannot be an id"),
        (".hidden:a.gguf", "cannot be an id"),
        ("sessions:a.gguf", "cannot be an id"),
        (f"{'x' * 257}:a.gguf", "256 are the most"),
        ("a.gguf?driver=", "needs a name"),
        ("one:a.gguf,one:b.gguf", "one: two models have this id"),
        (",".join(["a.gguf"] * (MAX_MODELS + 1)), "at most 64"),
    ],
)
def test_what_cannot_be_is_named(text: str, words: str) -> None:
    with pytest.raises(StartupError) as refused:
        parse_models([text])
    assert words in refused.value.message
    assert "\n" not in refused.value.message


@given(st.text(max_size=30))
def test_nothing_else_is_raised(text: str) -> None:
    try:
        found = parse_models([text])
    except StartupError:
        return
    assert all(one.ref for one in found)


def test_instances_of_a_file_have_ids_of_their_own_the_same_each_time() -> None:
    plain = Wanted("a.gguf")
    known = [
        (plain, "llama", "f1"),
        (plain, "llama", "f1"),
        (plain, "llama", "f2"),
        (Wanted("x", id="main"), "llama", "f1"),
    ]
    made = ids(known)
    assert made == [model_id("llama", "f1", 0), model_id("llama", "f1", 1), model_id("llama", "f2", 0), "main"]
    assert ids(known) == made


def test_an_id_of_its_own_making_gives_way_to_one_that_was_given() -> None:
    given_id = model_id("llama", "f1", 0)
    assert ids([(Wanted("a"), "llama", "f1"), (Wanted("b", id=given_id), "llama", "f9")]) == [
        model_id("llama", "f1", 1),
        given_id,
    ]
