"""`search` and `index`: an index of documents, as tools."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import trio
from msgspec import Meta

from granville.crucible.search import hybrid
from granville.crucible.search.embedding import embed
from granville.crucible.search.store import FILE_NAME, BadIndex, Store
from granville.crucible.search.update import update
from granville.crucible.tools.files import folders
from granville.crucible.tools.function import tool
from granville.crucible.tools.interface import Call, NotAllowed, ToolFailed
from granville.errors import NoModel, UnknownModel

MAX_QUERY_CHARS = 8192
MAX_DIMENSION = 8192
log = logging.getLogger(__name__)

PathText = Annotated[str, Meta(min_length=1, max_length=4096)]


@tool
async def search(
    index: Annotated[PathText, Meta(description="a file that `crucible index` has made, or its folder")],
    query: Annotated[str, Meta(max_length=MAX_QUERY_CHARS)],
    call: Call,
    top: Annotated[int, Meta(ge=1, le=hybrid.MAX_TOP, description="how many passages at most")] = 8,
    vector: Annotated[
        Annotated[list[float], Meta(min_length=1, max_length=MAX_DIMENSION)] | None,
        Meta(description="of the query, by the index's model; made by it unless given"),
    ] = None,
    words_only: bool = False,
) -> list[dict[str, Any]]:
    """Find the passages of indexed documents that say most about a query, best first."""
    path = await trio.to_thread.run_sync(_find, index, call)
    store = await trio.to_thread.run_sync(partial(Store, path, write=False))
    try:
        if vector is None and not words_only and store.model_id is not None and query.strip():
            vector = await _vector(store, query, call)
        return await trio.to_thread.run_sync(hybrid.search, store, query, None if words_only else vector, top)
    finally:
        store.close()


@tool(needs_allowance=True)
async def index(folder: PathText, call: Call, index: PathText | None = None) -> dict[str, Any]:
    """Bring the index of a folder's documents up to date."""
    where = await trio.to_thread.run_sync(_allowed, folder, call)
    path = where / FILE_NAME if index is None else await trio.to_thread.run_sync(_allowed, index, call)
    report = await update(where, path, client=call.client)
    return {
        "index": str(path),
        "documents": report.documents,
        "chunks": report.chunks,
        "added": report.added,
        "changed": report.changed,
        "removed": report.removed,
        "embedded": report.embedded,
        "without_vector": report.without_vector,
        "skipped": [{"source": one.source, "reason": one.reason} for one in report.skipped],
    }


async def _vector(store: Store, query: str, call: Call) -> list[float] | None:
    """None, which the log tells of, when the index's model is not there: words are better than nothing."""
    assert store.model_id is not None
    if call.client is not None:
        try:
            (vector,) = await embed(call.client, [query], store.model_id)
        except (UnknownModel, NoModel) as error:
            log.warning("search by words alone index=%s reason=%r", store.path, error.message)
            return None
        return vector
    log.warning("search by words alone index=%s reason='no connection to Granville'", store.path)
    return None


def _find(index: str, call: Call) -> Path:
    """Beginning at the workflow's folder, or else at the one that this process is in."""
    if not call.folder.is_absolute() or call.grants:
        return hybrid.index_path(_allowed(index, call))
    places = [hybrid.index_path(place / index) for place in (call.folder, Path.cwd())]
    for place in places:
        if place.is_file():
            return place
    raise BadIndex(
        f"there is no index {' or '.join(map(str, dict.fromkeys(places)))}; make one: crucible index FOLDER --into FILE"
    )


def _allowed(path: str, call: Call) -> Path:
    """A path in a folder that was allowed for this tool, links in it followed before that is looked at."""
    if "\0" in path:
        raise ToolFailed("a path has no NUL in it")
    roots = [root.resolve() for root in folders("search", call)]
    found = (roots[0] / path).resolve()
    if not any(found.is_relative_to(root) for root in roots):
        raise NotAllowed(f"{path} is not in {' or '.join(map(str, roots))}, and nothing else was allowed")
    return found
