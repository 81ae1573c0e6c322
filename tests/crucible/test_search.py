"""An index and its folder: brought up to date, killed anywhere, searched."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from granville.client import Client
from granville.crucible.search.store import BadIndex, Store
from granville.crucible.search.update import Report, update
from granville.crucible.tools.interface import Call, NotAllowed, ToolFailed
from granville.crucible.tools.toolbox import toolboxes
from granville.crucible.workflow.model import Step, Workflow
from granville.errors import NoModel, PromptTooLong, QueueFull

pytestmark = pytest.mark.real_time
WORKFLOW = Workflow(name="w", steps=(Step(id="a", tool="value"),))


class Embedder:
    """What is used of a Client: a text's vector says which of a few words are in it."""

    WORDS = ("cat", "dog", "boat")
    LONGEST_CHARS = 400

    def __init__(self, *ids: str) -> None:
        self.ids = ids
        self.asked: list[str] = []
        self.refusals = 0

    async def models(self) -> list[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        return [{"id": id, "type": "embedding"} for id in self.ids]

    async def embed(self, texts: Sequence[str], *, model_id: str | None = None) -> list[list[float]]:
        await trio.lowlevel.checkpoint()
        if self.refusals:
            self.refusals -= 1
            raise QueueFull("full", retry_after_ms=1)
        if model_id not in self.ids:
            raise NoModel("gone")
        if any(len(text) > self.LONGEST_CHARS for text in texts):
            raise PromptTooLong("too long")
        self.asked += texts
        return [[float(word in text) + 0.01 for word in self.WORDS] for text in texts]


async def bring(folder: Path, embedder: Embedder | None = None, *, model_id: str | None = None) -> Report:
    client = cast(Client, embedder) if embedder else None
    return await update(folder, folder / "i.db", client=client, model_id=model_id)


async def found(folder: Path, query: str, embedder: Embedder | None = None, **arguments: Any) -> list[dict[str, Any]]:
    async with toolboxes()(WORKFLOW, folder, ()) as box:
        call = Call("r", "a", client=cast(Client, embedder), folder=folder)
        passages = await box.call("search", {"index": "i.db", "query": query, **arguments}, call)
    return list(passages)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cats.md").write_text("# Cats\nA cat sleeps.\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "boats.txt").write_text("A boat sails.\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    return tmp_path


async def test_only_what_has_changed_is_read_again(folder: Path) -> None:
    embedder = Embedder("m")
    report = await bring(folder, embedder)
    assert (report.documents, report.chunks, report.added, report.embedded) == (2, 2, 2, 2)
    assert [(one.source, one.reason) for one in report.skipped] == [("picture.png", "no text")]
    (folder / "cats.md").write_text("# Dogs\nA dog sleeps.\n")
    (folder / "deep" / "boats.txt").touch()
    (folder / "new.txt").write_text("A cat.")
    report = await bring(folder, embedder)
    assert (report.added, report.changed, report.removed, report.embedded) == (1, 1, 0, 2)
    (folder / "new.txt").unlink()
    (folder / "deep" / "boats.txt").write_bytes(b"\0\0")
    report = await bring(folder, embedder)
    assert (report.added, report.changed, report.removed, report.embedded) == (0, 0, 2, 0)
    assert [one["source"] for one in await found(folder, "dog", embedder)] == ["cats.md"]


async def test_what_is_found(folder: Path) -> None:
    embedder = Embedder("m")
    await bring(folder, embedder)
    best, other = await found(folder, "where is the boat", embedder)
    assert best == {
        "text": "A boat sails.", "source": "deep/boats.txt", "start_line": 1, "end_line": 1, "title": "",
        "score": best["score"],
    }  # fmt: skip
    assert other["score"] < best["score"]
    assert other["title"] == "Cats"
    assert [one["source"] for one in await found(folder, "", None, vector=[1.0, 0.0, 0.0], top=1)] == ["cats.md"]
    assert [one["source"] for one in await found(folder, "cats", embedder, words_only=True)] == ["cats.md"]
    with pytest.raises(ToolFailed, match="have 3 numbers"):
        await found(folder, "cat", embedder, vector=[1.0])


async def test_without_a_model_there_are_words(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = await bring(folder)
    assert (report.without_vector, report.model_id) == (2, None)
    assert [one["source"] for one in await found(folder, "boats")] == ["deep/boats.txt"]
    report = await bring(folder, Embedder("m"))
    assert (report.embedded, report.without_vector, report.model_id) == (2, 0, "m")
    assert [one["source"] for one in await found(folder, "boats", Embedder())] == ["deep/boats.txt"]
    assert "search by words alone" in caplog.text
    assert "boats" not in caplog.text


async def test_one_model_for_good(folder: Path) -> None:
    with pytest.raises(BadIndex, match="--model a or --model b"):
        await bring(folder, Embedder("a", "b"))
    with pytest.raises(BadIndex, match="no embedding model c; it has a, b"):
        await bring(folder, Embedder("a", "b"), model_id="c")
    await bring(folder, Embedder("a", "b"), model_id="a")
    with pytest.raises(BadIndex, match="are of the model a"):
        await bring(folder, Embedder("a", "b"), model_id="b")
    (folder / "new.txt").write_text("A dog.")
    assert (await bring(folder, Embedder("b"))).without_vector == 1
    assert (await bring(folder, Embedder("a", "b"))).without_vector == 0


async def test_a_full_queue_is_waited_for_and_a_long_text_is_cut(folder: Path) -> None:
    (folder / "long.txt").write_text("dog " * 240)
    embedder = Embedder("m")
    embedder.refusals = 2
    report = await bring(folder, embedder)
    assert report.without_vector == 0
    assert max(map(len, embedder.asked)) <= Embedder.LONGEST_CHARS


def pdf(text: str) -> bytes:
    """A page with a line of text on it."""
    drawn = f"BT /F 18 Tf 20 200 Td ({text}) Tj ET"
    objects = (
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 300]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>",
        f"<</Length {len(drawn)}>>stream\n{drawn}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    )
    written, places = "%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(written))
        written += f"{number} 0 obj{one}endobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"trailer<</Size 6/Root 1 0 R>>\nstartxref\n{len(written)}\n%%EOF\n"
    return f"{written}xref\n0 6\n0000000000 65535 f \n{table}{end}".encode()


async def test_pdf_files(folder: Path) -> None:
    (folder / "paper.pdf").write_bytes(pdf("A boat on paper."))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing")
    report = await bring(folder)
    (broken,) = [one for one in report.skipped if one.source == "broken.pdf"]
    assert broken.reason.startswith("no PDF file that can be read")
    (paper,) = await found(folder, "paper")
    assert paper["text"].startswith("A boat on paper")


KILLED = """
import os, signal, sys
from pathlib import Path
import trio
from typing import cast
from granville.crucible.search import store, update
from tests.crucible.test_search import Embedder
where, count = sys.argv[2], int(sys.argv[3])
update.DOCUMENTS_A_TRANSACTION = 4
update.BATCH = 3
calls = 0
def counted(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls > count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
setattr(store.Store, where, counted(getattr(store.Store, where)))
folder = Path(sys.argv[1])
trio.run(lambda: update.update(folder, folder / "i.db", client=Embedder("m")))
"""


@pytest.mark.parametrize(
    ("where", "count", "documents", "vectors"),
    [("_make", 0, 0, 0), ("_add", 0, 0, 0), ("_add", 6, 4, 0), ("replace", 2, 8, 0), ("add_vectors", 2, 10, 6)],
)
async def test_killed_anywhere_it_goes_on(tmp_path: Path, where: str, count: int, documents: int, vectors: int) -> None:
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text(f"A cat number {number}.")
    run = [sys.executable, "-c", KILLED, str(tmp_path), where, str(count)]
    ended = await trio.to_thread.run_sync(lambda: subprocess.run(run, check=False, cwd=Path(__file__).parents[2]))
    assert ended.returncode == -signal.SIGKILL
    if where == "_make":  # an empty file, which has nothing to be searched
        with pytest.raises(ToolFailed, match="not an index"):
            await found(tmp_path, "cat")
    else:
        assert len(await found(tmp_path, "cat", top=20)) == documents
        store = Store(tmp_path / "i.db", write=False)
        assert store.counts() == (documents, documents, documents - vectors)
        store.close()
    report = await bring(tmp_path, Embedder("m"))
    assert (report.documents, report.chunks, report.without_vector) == (10, 10, 0)
    assert (report.added, report.embedded) == (10 - documents, 10 - vectors)


async def test_the_tool_index_needs_to_be_allowed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    call = Call("r", "a", folder=folder)
    async with toolboxes()(WORKFLOW, folder, ()) as box:
        with pytest.raises(NotAllowed, match="--allow index:FOLDER"):
            await box.call("index", {"folder": "."}, call)
    async with toolboxes()(WORKFLOW, folder, (f"index:{folder}", f"search:{folder}")) as box:
        assert (await box.call("index", {"folder": "."}, call))["documents"] == 2
        assert len(await box.call("search", {"index": ".", "query": "boats"}, call)) == 1
        with pytest.raises(NotAllowed, match="nothing else was allowed"):
            await box.call("index", {"folder": str(other)}, call)
        with pytest.raises(NotAllowed, match="nothing else was allowed"):
            await box.call("search", {"index": str(other), "query": "boats"}, call)
    wire = Call("r", "a")
    async with toolboxes()(WORKFLOW, None, ()) as box:
        with pytest.raises(NotAllowed, match="came over the wire"):
            await box.call("search", {"index": str(folder), "query": "boats"}, wire)
