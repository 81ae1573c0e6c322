"""Passages of documents, which files are documents, and how two orders become one."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.crucible.search.chunks import MAX_CHARS, Chunk, cut
from granville.crucible.search.documents import Line, NotReadable, read_text
from granville.crucible.search.found import File, Skipped, find_documents
from granville.crucible.search.hybrid import fuse, search
from granville.crucible.search.store import BadIndex, Fresh, Store


def plain(text: str) -> list[Line]:
    return read_text(text.encode(), ".txt")


def test_a_markdown_page_is_cut_at_its_headings() -> None:
    page = "# Town\n\nIntro.\n\n## Market\nOn Wednesdays.\n```\n# no heading\n```\n# End\nBye."
    assert cut(read_text(page.encode(), ".md")) == [
        Chunk("Town", "Town\nIntro.", 1, 3),
        Chunk("Town › Market", "Market\nOn Wednesdays.\n```\n# no heading\n```", 5, 9),
        Chunk("End", "End\nBye.", 10, 11),
    ]


def test_restructured_text_and_html_have_headings_too() -> None:
    page = "Town\n====\n\nIntro.\n\nMarket\n------\nOn Wednesdays.\n"
    assert [(one.title, one.start_line, one.end_line) for one in cut(read_text(page.encode(), ".rst"))] == [
        ("Town", 1, 4), ("Town › Market", 6, 8),
    ]  # fmt: skip
    page = (
        "<html><head><title>Town</title><style>p {}</style></head>\n<body><h1>Town</h1>\n<p>Intro &amp; more.</p>\n"
        "<h2>Market</h2>\n<p>On <b>Wednesdays</b>.<script>steal()</script>\n</body>"
    )
    market = cut(read_text(page.encode(), ".html"))[-1]
    assert (market.title, market.text, market.start_line) == ("Town › Market", "Market\nOn Wednesdays .", 4)
    assert "Intro & more." in cut(read_text(page.encode(), ".html"))[-2].text


def test_paragraphs_stay_whole_and_long_ones_overlap() -> None:
    first, second = "a" * 40, "b" * 40
    assert [one.text for one in cut(plain(f"{first}\n\n{second}\n\nc"), max_chars=50)] == [first, f"{second}\nc"]
    lines = [f"line {number}" for number in range(12)]
    found = cut(plain("\n".join(lines)), max_chars=40, overlap_chars=10)
    assert found[0].text.splitlines()[-1] == found[1].text.splitlines()[0]
    assert (found[0].start_line, found[1].start_line) == (1, found[0].end_line)


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=120), max_size=30),
    st.integers(20, 80), st.integers(0, 30),
)  # fmt: skip
def test_nothing_is_lost_and_no_passage_is_too_long(texts: list[str], most: int, overlap: int) -> None:
    found = cut([Line(number, text) for number, text in enumerate(texts, 1)], max_chars=most, overlap_chars=overlap)
    assert all(len(one.text) <= most and one.text.strip() for one in found)
    assert all(1 <= one.start_line <= one.end_line <= len(texts) for one in found)
    rest = "".join(one.text for one in found)
    for text in texts:
        assert text[: most - min(overlap, most // 2)].strip() in rest


@given(st.binary(max_size=400), st.sampled_from([".txt", ".md", ".rst", ".html"]))
def test_any_bytes_are_read_or_refused(data: bytes, suffix: str) -> None:
    try:
        lines = read_text(data, suffix)
    except NotReadable:
        return
    assert all(len(one.text) <= MAX_CHARS for one in cut(lines))


def test_encodings() -> None:
    assert read_text("é".encode("utf-16"), ".txt")[0].text == "é"
    assert read_text("\ufeffé".encode(), ".txt")[0].text == "é"
    assert read_text("caf\xe9 cr\xe8me".encode("latin-1"), ".txt")[0].text == "café crème"
    for data in (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff\xe0" + bytes(range(1, 32)) * 9):
        with pytest.raises(NotReadable):
            read_text(data, ".txt")


def test_which_files_are_documents(tmp_path: Path) -> None:
    for name in (
        "a.md",
        "b.log",
        "sub/keep.log",
        "sub/c.txt",
        "build/x.txt",
        ".git/config",
        ".hidden",
        "sub/deep/d.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".gitignore").write_text("*.log\n/build/\n")
    (tmp_path / "sub" / ".gitignore").write_text("!keep.log\ndeep/*.txt\n")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "huge.txt").touch()
    os.truncate(tmp_path / "huge.txt", 9 << 20)
    os.mkfifo(tmp_path / "pipe")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.md"))).write_text("x")
    found = list(find_documents(tmp_path, leave_out=tmp_path / "sub/c.txt"))
    assert [one.source for one in found if isinstance(one, File)] == ["a.md", "sub/deep/d.py", "sub/keep.log"]
    skipped = {one.source: one.reason for one in found if isinstance(one, Skipped)}
    assert skipped["loop"] == "a symbolic link"
    assert "8388608 are the most" in skipped["huge.txt"]
    assert "not UTF-8" in skipped["\\udcff.md"]


def test_two_orders_become_one() -> None:
    assert [id for id, _ in fuse([1, 2, 3], [3, 2, 9])] == [3, 2, 1, 9]
    assert fuse([], []) == []
    assert fuse([7]) == [(7, 1 / 61)]


def fresh(source: str, *texts: str) -> Fresh:
    return Fresh(source, 1, 1, b"h", tuple(Chunk("", text, 1, 1) for text in texts))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "i.db", write=True)
    store.replace([fresh("cats.md", "the cat sat on the mat", "cats purr"), fresh("dogs.md", "a dog ran")])
    return store


def sources(store: Store, query: str, vector: list[float] | None = None) -> list[str]:
    return [one["source"] for one in search(store, query, vector, 5)]


def test_words_are_found_whatever_the_query_is_written_like(store: Store) -> None:
    assert sources(store, "dogs") == ["dogs.md"]
    assert sources(store, 'cat AND (NOT "mat') == ["cats.md", "cats.md"]
    assert sources(store, "") == sources(store, "* - ^ : {} ()") == []


def test_no_query_raises(store: Store) -> None:
    @given(st.text(max_size=60))
    def ask(query: str) -> None:
        sources(store, query)

    ask()


def test_vectors_and_words_together(store: Store) -> None:
    store.use_model("m", 2)
    store.add_vectors([(id, [1.0, 0.0] if "cat" in text else [0.0, 1.0]) for id, text in store.without_vector(10)])
    assert store.counts() == (2, 3, 0)
    assert sources(store, "", [0.1, 1.0])[0] == "dogs.md"
    assert sources(store, "purr", [1.0, 0.0])[0] == "cats.md"
    store.replace([fresh("dogs.md", "no longer about them")], gone=["cats.md"])
    assert sources(store, "cat mat purr", [1.0, 0.0]) == []
    assert store.counts() == (1, 1, 1)


def test_in_an_empty_index_nothing_is_found(tmp_path: Path) -> None:
    empty = Store(tmp_path / "empty.db", write=True)
    assert sources(empty, "cat") == sources(empty, "cat", [1.0, 0.0]) == []


def test_vectors_of_another_model_are_refused(store: Store) -> None:
    with pytest.raises(BadIndex, match="words only"):
        store.by_vector([1.0], 1)
    store.use_model("small", 2)
    with pytest.raises(BadIndex, match="of the model small, and those of large"):
        store.use_model("large", 2)
    with pytest.raises(BadIndex, match=r"have 2 numbers .* and this one has 3"):
        search(store, "cat", [1.0, 2.0, 3.0], 5)


def test_what_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(BadIndex, match="crucible index FOLDER --into"):
        Store(tmp_path / "none.db", write=False)
    (tmp_path / "text").write_text("hello, this is no database\n" * 100)
    for write in (True, False):
        with pytest.raises(BadIndex):
            Store(tmp_path / "text", write=write)
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE x (y)")
    other.close()
    for write in (True, False):
        with pytest.raises(BadIndex, match="not an index of Crucible's"):
            Store(tmp_path / "other.db", write=write)
    assert (tmp_path / "text").read_text().startswith("hello")
