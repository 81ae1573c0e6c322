"""How long the retrieval part of a question takes: embed the query, search by words and by meaning.

    python -m benchmarks.crucible_search [--documents 1000] [--queries 50] [--model FILE.gguf]

all-MiniLM-L6-v2 is made of its wheel unless a model is given, and served by a daemon of its own. The documents are put
together of the same words, from a seed. Prints JSON: times in ms, and how often the document that a query was made from
is the first that is found, by words alone and by both: where all are about the same, only a number tells them apart.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import trio

from examples.models.minilm import minilm
from granville.client import Client, connect
from granville.crucible.search.hybrid import search
from granville.crucible.search.store import Store
from granville.crucible.search.update import Report, update
from granville.crucible.tools.interface import Call
from granville.crucible.tools.toolbox import toolboxes
from granville.crucible.workflow.model import Step, Workflow
from tests.e2e.harness import running

WHO = ("baker", "pilot", "nurse", "tailor", "farmer", "clerk", "sailor", "miner", "judge", "poet", "singer", "guard")
DOES = ("repairs", "sells", "paints", "borrows", "hides", "measures", "counts", "carries", "loses", "finds", "cleans")
WHAT = ("lantern", "ladder", "violin", "anchor", "kettle", "carpet", "compass", "saddle", "mirror", "basket", "barrel")
WHERE = ("harbour", "market", "chapel", "mill", "bridge", "forest", "station", "library", "orchard", "quarry", "tower")
WHEN = (
    "in January",
    "at dawn",
    "on Sundays",
    "after the storm",
    "before noon",
    "every autumn",
    "at midnight",
    "in May",
)


def write_documents(folder: Path, count: int) -> list[str]:
    """A query for each document: what is told in its third paragraph, in other words."""
    chance = random.Random(1)
    queries = []
    for number in range(count):
        told = [tuple(chance.choice(words) for words in (WHO, DOES, WHAT, WHERE, WHEN)) for _ in range(16)]
        sentences = [f"The {a} {b} a {c} near the {d} {e}." for a, b, c, d, e in told]
        paragraphs = [" ".join(sentences[start : start + 4]) for start in range(0, 16, 4)]
        name = f"Report {number} of the {told[0][3]}"
        (folder / f"{number}.md").write_text("\n\n".join([f"# {name}", *paragraphs]) + "\n")
        queries.append(f"report {number}: who {told[9][1]} the {told[9][2]} by the {told[9][3]}?")
    return queries


async def measure(client: Client, folder: Path, queries: list[str], chosen: list[int]) -> dict[str, object]:
    path = folder / "index.db"
    started = time.perf_counter()
    report: Report = await update(folder, path, client=client)
    indexed_s = time.perf_counter() - started
    assert report.without_vector == 0
    started = time.perf_counter()
    await update(folder, path, client=client)
    again_s = time.perf_counter() - started
    embeds, searches, wholes = [], [], []
    by_both = by_words = 0
    workflow = Workflow(name="w", steps=(Step(id="a", tool="search"),))
    async with toolboxes()(workflow, folder, ()) as box:
        for number in chosen:
            started = time.perf_counter()
            (vector,) = await client.embed([queries[number]], model_id=report.model_id)
            embeds.append(time.perf_counter() - started)
            started = time.perf_counter()
            store = Store(path, write=False)
            search(store, queries[number], vector, 8)
            store.close()
            searches.append(time.perf_counter() - started)
            call = Call("r", "a", client=client, folder=folder)
            started = time.perf_counter()
            found = await box.call("search", {"index": "index.db", "query": queries[number]}, call)
            wholes.append(time.perf_counter() - started)
            by_both += found[0]["source"] == f"{number}.md"
            arguments = {"index": "index.db", "query": queries[number], "words_only": True}
            by_words += (await box.call("search", arguments, call))[0]["source"] == f"{number}.md"
    return {
        "documents": report.documents,
        "passages": report.chunks,
        "index_bytes": (await trio.Path(path).stat()).st_size,
        "index_s": round(indexed_s, 2),
        "index_again_s": round(again_s, 3),
        "embed_ms": shown(embeds),
        "search_ms": shown(searches),
        "tool_search_ms": shown(wholes),
        "first_by_words": f"{by_words} of {len(chosen)}",
        "first_by_both": f"{by_both} of {len(chosen)}",
    }


def shown(seconds: list[float]) -> dict[str, float]:
    ms = sorted(1000 * one for one in seconds)
    return {
        "median": round(statistics.median(ms), 1),
        "p95": round(ms[int(0.95 * (len(ms) - 1))], 1),
        "max": round(ms[-1], 1),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--documents", type=int, default=1000)
    options.add_argument("--queries", type=int, default=50)
    options.add_argument("--model", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        (folder / "documents").mkdir()
        (folder / "daemon").mkdir()
        model = given.model or minilm(folder)
        queries = write_documents(folder / "documents", given.documents)
        chosen = random.Random(2).sample(range(given.documents), min(given.queries, given.documents))

        async def go(address: str) -> dict[str, object]:
            async with connect(address) as client:
                return await measure(client, folder / "documents", queries, chosen)

        with running(folder / "daemon", driver="granville-llama", model=f"embedding:{model}") as daemon:
            print(json.dumps(trio.run(go, str(daemon.socket)), indent=2))
            daemon.stop()


if __name__ == "__main__":
    main()
