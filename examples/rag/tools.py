"""What the rag workflow compares passages with, where no reranker is served: `--tools examples/rag/tools.py`."""

from __future__ import annotations

import re
from typing import Any

from granville.crucible.tools.function import tool
from granville.crucible.tools.interface import Call, ToolFailed

SENTENCES = re.compile(r"(?<=[.?!])\s+|\n+")
MAX_SENTENCES = 1000


@tool
async def closest_sentences(question: list[float], documents: list[dict[str, Any]], call: Call) -> list[dict[str, Any]]:
    """Order documents by how near the nearest of their sentences comes to a question's vector, in the form that a
    rerank step gives: `index`, `score`, `document`, best first."""
    if call.client is None:
        raise ToolFailed("there is no connection to Granville, whose embedding model is needed")
    parts = [(index, part) for index, document in enumerate(documents) for part in SENTENCES.split(document["text"])]
    parts = [(index, part) for index, part in parts if part.strip()][:MAX_SENTENCES]
    vectors = await call.client.embed([part for _, part in parts]) if parts else []
    best = dict.fromkeys(range(len(documents)), -1.0)
    for (index, _), vector in zip(parts, vectors, strict=True):
        best[index] = max(best[index], sum(a * b for a, b in zip(question, vector, strict=True)))
    return [
        {"index": index, "score": score, "document": documents[index]}
        for index, score in sorted(best.items(), key=lambda one: one[1], reverse=True)
    ]
