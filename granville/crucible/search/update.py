"""Bring an index up to date with its folder: what is new or has changed is read, what is gone is taken out, and
passages without a vector get one. Ended at any point, it goes on there the next time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from granville.client import Client
from granville.crucible.search.chunks import cut
from granville.crucible.search.documents import NotReadable, read_pdf, read_text
from granville.crucible.search.embedding import BATCH, embed, embedding_model
from granville.crucible.search.found import MAX_PDF_BYTES, File, Skipped, find_documents
from granville.crucible.search.store import BadIndex, Fresh, Known, Store

DOCUMENTS_A_TRANSACTION = 64
CHUNKS_A_TRANSACTION = 512
Progress = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, of how much)."""


@dataclass(slots=True)
class Report:
    path: Path
    documents: int = 0
    """In the index, now."""
    chunks: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    embedded: int = 0
    without_vector: int = 0
    model_id: str | None = None
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(slots=True)
class _Batch:
    """Of documents that are to be committed together."""

    documents: list[Fresh] = field(default_factory=list)
    touched: list[tuple[str, int]] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        chunks = sum(len(one.chunks) for one in self.documents)
        return len(self.documents) >= DOCUMENTS_A_TRANSACTION or chunks >= CHUNKS_A_TRANSACTION


async def update(
    folder: Path, path: Path, *, client: Client | None = None, model_id: str | None = None,
    progress: Progress = lambda what, done, whole: None,
) -> Report:  # fmt: skip
    """Bring the index at `path` up to date. Without a client, or with one that has no embedding model, words only.

    Raises BadIndex, and what Granville answers.
    """
    store = await trio.to_thread.run_sync(_opened, folder, path)
    try:
        report = Report(path)
        model = await _model(store, client, model_id)
        await _documents(store, folder, report, progress)
        if client is not None and model is not None:
            await _vectors(store, client, model, report, progress)
        report.model_id = store.model_id
        report.documents, report.chunks, report.without_vector = await trio.to_thread.run_sync(store.counts)
        return report
    finally:
        store.close()


def check_folder(folder: Path) -> None:
    """Raises BadIndex."""
    if not folder.is_dir():
        raise BadIndex(f"{folder}: there is no such folder")


def _opened(folder: Path, path: Path) -> Store:
    check_folder(folder)
    return Store(path.absolute(), write=True)


async def _model(store: Store, client: Client | None, wanted: str | None) -> str | None:
    if wanted is not None and store.model_id is not None:
        store.check_model(wanted, None)
    if client is None:
        return None
    if store.model_id is not None and wanted is None:
        served = [str(model["id"]) for model in await client.models() if model["type"] == "embedding"]
        return store.model_id if store.model_id in served else None
    return await embedding_model(client, wanted)


async def _documents(store: Store, folder: Path, report: Report, progress: Progress) -> None:
    known = await trio.to_thread.run_sync(store.known)
    gone = set(known)
    batch = _Batch()
    found = await trio.to_thread.run_sync(_found, folder, store.path)
    for done, file in enumerate(found):
        progress("Reading", done, len(found))
        if isinstance(file, Skipped):
            report.skipped.append(file)
            continue
        before = known.get(file.source)
        if before is not None and (before.mtime_ns, before.size) == (file.mtime_ns, file.size):
            gone.discard(file.source)
            continue
        fresh = await _read(file, before, report)
        if fresh is None:
            continue
        gone.discard(file.source)
        if fresh is before:
            batch.touched.append((file.source, file.mtime_ns))
        else:
            assert isinstance(fresh, Fresh)
            batch.documents.append(fresh)
        if batch.is_full:
            await _commit(store, batch)
            batch = _Batch()
    await _commit(store, batch, gone=sorted(gone))
    report.removed = len(gone)
    progress("Reading", len(found), len(found))


def _found(folder: Path, own: Path) -> list[File | Skipped]:
    return list(find_documents(folder.absolute(), leave_out=own))


async def _commit(store: Store, batch: _Batch, *, gone: Sequence[str] = ()) -> None:
    await trio.to_thread.run_sync(partial(store.replace, batch.documents, gone=gone, touched=batch.touched))


async def _read(file: File, before: Known | None, report: Report) -> Fresh | Known | None:
    """The document as it is now, or as it was if it says the same; None if it can no longer be read."""
    try:
        data = await trio.to_thread.run_sync(_bytes, file.path)
        hash = hashlib.blake2b(data, digest_size=16).digest()
        if before is not None and before.hash == hash:
            return before
        suffix = file.path.suffix.lower()
        if suffix == ".pdf":
            lines = await read_pdf(file.path)
        else:
            lines = await trio.to_thread.run_sync(read_text, data, suffix)
        chunks = await trio.to_thread.run_sync(cut, lines)
    except NotReadable as error:
        report.skipped.append(Skipped(file.source, error.message))
        return None
    except OSError as error:
        report.skipped.append(Skipped(file.source, error.strerror or str(error)))
        return None
    report.changed += before is not None
    report.added += before is None
    return Fresh(file.source, file.mtime_ns, file.size, hash, tuple(chunks))


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_PDF_BYTES)


async def _vectors(store: Store, client: Client, model: str, report: Report, progress: Progress) -> None:
    _, _, missing = await trio.to_thread.run_sync(store.counts)
    done = 0
    while texts := await trio.to_thread.run_sync(store.without_vector, BATCH):
        progress("Embedding", done, missing)
        vectors = await embed(client, [text for _, text in texts], model)
        await trio.to_thread.run_sync(store.use_model, model, len(vectors[0]))
        pairs = [(id, vector) for (id, _), vector in zip(texts, vectors, strict=True)]
        await trio.to_thread.run_sync(store.add_vectors, pairs)
        done += len(texts)
    report.embedded = done
    progress("Embedding", done, max(done, missing))
