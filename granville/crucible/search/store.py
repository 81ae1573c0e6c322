"""The index: one SQLite file with documents, their passages, a full-text index (FTS5) and vectors (sqlite-vec).

Every change is a transaction: whenever the process ends, the file is a usable index of what had been committed. A
passage whose vector is not there yet is marked, and found by its words.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from granville.crucible.search.chunks import Chunk
from granville.crucible.tools.extra import needed
from granville.errors import GranvilleError

FILE_NAME = ".crucible.db"
"""In the folder that it is the index of, unless it is put elsewhere."""
APPLICATION_ID = 0x43525543
VERSION = 1
BUSY_MS = 30_000
MAX_QUERY_WORDS = 64
_WORD = re.compile(r"\w+")
_SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE documents (id INTEGER PRIMARY KEY, source TEXT NOT NULL UNIQUE, mtime_ns INTEGER NOT NULL,
    size INTEGER NOT NULL, hash BLOB NOT NULL, chunks INTEGER NOT NULL);
CREATE TABLE chunks (id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL REFERENCES documents(id),
    title TEXT NOT NULL, text TEXT NOT NULL, start_line INTEGER NOT NULL, end_line INTEGER NOT NULL,
    has_vector INTEGER NOT NULL DEFAULT 0);
CREATE INDEX chunks_of ON chunks (document);
CREATE INDEX without_vector ON chunks (id) WHERE NOT has_vector;
CREATE VIRTUAL TABLE words USING fts5(title, text, content='', contentless_delete=1,
    tokenize='porter unicode61 remove_diacritics 2');
"""


class BadIndex(GranvilleError):
    """There is no index, or it is not what is needed: the message says what would be."""

    error = "bad_index"
    code = 422


@dataclass(frozen=True, slots=True)
class Known:
    """A document as it was when it was indexed."""

    id: int
    mtime_ns: int
    size: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Fresh:
    """A document as it is to be indexed."""

    source: str
    mtime_ns: int
    size: int
    hash: bytes
    chunks: tuple[Chunk, ...]


class Store:
    """One connection; one call at a time. Every method may raise BadIndex."""

    def __init__(self, path: Path, *, write: bool) -> None:
        apsw = needed("apsw", "indexes")
        sqlite_vec = needed("sqlite_vec", "indexes")
        self._apsw, self.path = apsw, path
        if write:
            _make_private(path)
        elif not path.is_file():
            raise BadIndex(f"{path}: there is no index; make one: crucible index FOLDER --into {path}")
        # A reader opens it to write too, if it may: after a crash the last transaction has to be undone first.
        may_write = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
        flags = apsw.SQLITE_OPEN_READWRITE if write or may_write else apsw.SQLITE_OPEN_READONLY
        with self._failing():
            self._db = apsw.Connection(str(path), flags=flags)
        try:
            with self._failing():
                self._db.set_busy_timeout(BUSY_MS)
                self._db.enable_load_extension(True)
                self._db.load_extension(sqlite_vec.loadable_path())
                self._db.enable_load_extension(False)
                if write:
                    self._db.execute("PRAGMA synchronous=FULL")
                    self._make()
                else:
                    self._db.execute("PRAGMA query_only=ON")
                self._check()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._db.close()

    @property
    def model_id(self) -> str | None:
        """The embedding model of all its vectors; None: it has none."""
        model_id: str | None = self._about("model_id")
        return model_id

    @property
    def dimension(self) -> int | None:
        dimension: int | None = self._about("dimension")
        return dimension

    def counts(self) -> tuple[int, int, int]:
        """Documents, passages, and those of the passages that have no vector yet."""
        with self._failing():
            return (
                self._value("SELECT count(*) FROM documents"),
                self._value("SELECT count(*) FROM chunks"),
                self._value("SELECT count(*) FROM chunks WHERE NOT has_vector"),
            )

    def known(self) -> dict[str, Known]:
        with self._failing():
            rows = self._db.execute("SELECT source, id, mtime_ns, size, hash FROM documents")
            return {source: Known(*rest) for source, *rest in rows}

    def replace(
        self, documents: Sequence[Fresh], *, gone: Sequence[str] = (), touched: Sequence[tuple[str, int]] = ()
    ) -> None:
        """Take in documents, in place of what there was of the same source, and take out others; all or nothing.

        `touched`: (source, mtime_ns) of those that were written anew and say the same.
        """
        with self._changing():
            for source, mtime_ns in touched:
                self._db.execute("UPDATE documents SET mtime_ns = ? WHERE source = ?", (mtime_ns, source))
            for source in [*gone, *(one.source for one in documents)]:
                self._remove(source)
            for one in documents:
                self._add(one)

    def without_vector(self, most: int) -> list[tuple[int, str]]:
        """(id, text with its title) of the next passages."""
        with self._failing():
            rows = self._db.execute(
                "SELECT id, title, text FROM chunks WHERE NOT has_vector ORDER BY id LIMIT ?", (most,)
            )
            return [(id, f"{title}\n{text}" if title not in text else text) for id, title, text in rows]

    def use_model(self, model_id: str, dimension: int) -> None:
        """Say whose vectors they are, once and for all."""
        with self._changing():
            if self.model_id is None:
                columns = f"embedding float[{dimension:d}] distance_metric=cosine"
                self._db.execute(f"CREATE VIRTUAL TABLE vectors USING vec0({columns})")
                self._db.execute("INSERT INTO about VALUES ('model_id', ?), ('dimension', ?)", (model_id, dimension))
        self.check_model(model_id, dimension)

    def check_model(self, model_id: str | None, dimension: int | None) -> None:
        """Raises BadIndex for vectors that cannot be compared with those of the index."""
        if self.model_id is None:
            raise BadIndex(f"{self.path}: it has no vectors, words only; index it again with an embedding model")
        if model_id not in (None, self.model_id):
            raise BadIndex(
                f"{self.path}: its vectors are of the model {self.model_id}, and those of {model_id} cannot be "
                f"compared with them; use --model {self.model_id}, or make another index"
            )
        if dimension not in (None, self.dimension):
            raise BadIndex(
                f"{self.path}: its vectors have {self.dimension} numbers (model {self.model_id}), and this one has "
                f"{dimension}; use the same model"
            )

    def add_vectors(self, vectors: Sequence[tuple[int, Sequence[float]]]) -> None:
        """(id of the passage, its vector). One that is gone meanwhile is left out."""
        pack = needed("sqlite_vec", "indexes").serialize_float32
        with self._changing():
            for id, vector in vectors:
                if self._value("SELECT count(*) FROM chunks WHERE id = ? AND NOT has_vector", id):
                    self._db.execute("INSERT INTO vectors (rowid, embedding) VALUES (?, ?)", (id, pack(list(vector))))
                    self._db.execute("UPDATE chunks SET has_vector = 1 WHERE id = ?", (id,))

    def by_words(self, query: str, most: int) -> list[int]:
        """Passages that have any of the query's words, best first (bm25); the words of titles count double."""
        found = [f'"{word}"' for word in dict.fromkeys(_WORD.findall(query.lower()))][:MAX_QUERY_WORDS]
        if not found:
            return []
        with self._failing():
            rows = self._db.execute(
                "SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words, 2.0, 1.0) LIMIT ?",
                (" OR ".join(found), most),
            )
            return [id for (id,) in rows]

    def by_vector(self, vector: Sequence[float], most: int) -> list[int]:
        """Passages, the nearest first (cosine); none in an index that has none, whatever the vector is."""
        with self._failing():
            if not self._value("SELECT EXISTS (SELECT 1 FROM chunks)"):
                return []
        self.check_model(None, len(vector))
        packed = needed("sqlite_vec", "indexes").serialize_float32(list(vector))
        with self._failing():
            rows = self._db.execute(
                "SELECT rowid FROM vectors WHERE embedding MATCH ? AND k = ? ORDER BY distance", (packed, most)
            )
            return [id for (id,) in rows]

    def passages(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """By id: text, source, start_line, end_line, title."""
        with self._failing():
            rows = self._db.execute(
                "SELECT c.id, c.text, d.source, c.start_line, c.end_line, c.title FROM chunks c "
                "JOIN documents d ON d.id = c.document WHERE c.id IN (SELECT value FROM json_each(?))",
                (msgspec.json.encode(list(ids)).decode(),),
            )
            names = ("text", "source", "start_line", "end_line", "title")
            return {id: dict(zip(names, rest, strict=True)) for id, *rest in rows}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What is read in the body is of one moment."""
        with self._failing():
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("COMMIT")

    def _remove(self, source: str) -> None:
        id = self._value("SELECT id FROM documents WHERE source = ?", source)
        if id is None:
            return
        self._db.execute("DELETE FROM words WHERE rowid IN (SELECT id FROM chunks WHERE document = ?)", (id,))
        if self.model_id is not None:
            self._db.execute("DELETE FROM vectors WHERE rowid IN (SELECT id FROM chunks WHERE document = ?)", (id,))
        self._db.execute("DELETE FROM chunks WHERE document = ?", (id,))
        self._db.execute("DELETE FROM documents WHERE id = ?", (id,))

    def _add(self, one: Fresh) -> None:
        self._db.execute(
            "INSERT INTO documents (source, mtime_ns, size, hash, chunks) VALUES (?, ?, ?, ?, ?)",
            (one.source, one.mtime_ns, one.size, one.hash, len(one.chunks)),
        )
        document = self._db.last_insert_rowid()
        for chunk in one.chunks:
            self._db.execute(
                "INSERT INTO chunks (document, title, text, start_line, end_line) VALUES (?, ?, ?, ?, ?)",
                (document, chunk.title, chunk.text, chunk.start_line, chunk.end_line),
            )
            id = self._db.last_insert_rowid()
            title = f"{one.source} {chunk.title}"
            self._db.execute("INSERT INTO words (rowid, title, text) VALUES (?, ?, ?)", (id, title, chunk.text))

    def _make(self) -> None:
        if self._value("PRAGMA application_id") != 0:
            return
        with self._changing():
            if self._value("SELECT count(*) FROM sqlite_schema") == 0:
                self._db.execute(_SCHEMA)
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _check(self) -> None:
        if self._value("PRAGMA application_id") != APPLICATION_ID:
            raise BadIndex(f"{self.path}: not an index of Crucible's; make one: crucible index FOLDER --into FILE")
        version = self._value("PRAGMA user_version")
        if version != VERSION:
            raise BadIndex(f"{self.path}: an index of version {version}, and this Crucible has {VERSION}; make it anew")

    def _about(self, name: str) -> Any:
        with self._failing():
            return self._value("SELECT value FROM about WHERE name = ?", name)

    def _value(self, sql: str, *values: Any) -> Any:
        row = self._db.execute(sql, values).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._failing():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except self._apsw.Error as error:
            raise BadIndex(f"{self.path}: {error}") from None


def _make_private(path: Path) -> None:
    """An index holds what its documents say: it is for whoever made it alone."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise BadIndex(f"{path}: {error.strerror or error}") from None
