"""By words and by meaning in one list: reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009), which needs
no scores that can be compared, only the order of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from granville.crucible.search.store import FILE_NAME, Store

FUSION_CONSTANT = 60
"""Of that paper: how much the first of a list is worth more than the tenth."""
MAX_TOP = 100
CANDIDATES = 5
"""So many times as many as are wanted are taken from each list: one that both have in the middle may be the best."""
MIN_CANDIDATES = 50


def fuse(*orders: Sequence[int]) -> list[tuple[int, float]]:
    """(id, score), best first: the sum of 1 / (constant + rank) over the lists that have it."""
    scores: dict[int, float] = {}
    for order in orders:
        for rank, id in enumerate(order, 1):
            scores[id] = scores.get(id, 0.0) + 1 / (FUSION_CONSTANT + rank)
    return sorted(scores.items(), key=lambda one: (-one[1], one[0]))


def search(store: Store, query: str, vector: Sequence[float] | None, top: int) -> list[dict[str, Any]]:
    """The best passages for a query, each {text, source, start_line, end_line, title, score}, best first.

    Without a vector by its words alone; with one and an empty query by the vector alone. Raises BadIndex.
    """
    most = max(MIN_CANDIDATES, CANDIDATES * top)
    with store.reading():
        orders = [store.by_words(query, most)]
        if vector is not None:
            orders.append(store.by_vector(vector, most))
        best = fuse(*orders)[:top]
        passages = store.passages([id for id, _ in best])
    return [{**passages[id], "score": score} for id, score in best if id in passages]


def index_path(path: Path) -> Path:
    """The file of an index that was named by itself, or by the folder that it is of."""
    return path / FILE_NAME if path.is_dir() else path
