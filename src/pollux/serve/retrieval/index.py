"""An index on disk: the chunks of documents, found by their words (BM25 of SQLite's FTS5) and by their vectors (cosine, all compared),
the two rankings fused by reciprocal rank.

One SQLite file for each collection, so that one person's documents do not weigh on another's results. All of it can be made again from the
documents, and is if the file is broken or the model that embeds is another.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pollux.serve.retrieval.chunks import UNSPACED, Chunk, searchable

log = logging.getLogger("pollux.serve")

RANK_CONSTANT = 60  # of reciprocal rank fusion, Cormack, Clarke and Büttcher 2009
VECTOR_WEIGHT = 0.05  # of the vectors, words weigh 1: a model that writes places texts roughly, and with more it drowns what words find
MAX_TERMS = 64  # of a query
_LEAST_CANDIDATES = 50  # of each ranking
_SAME = 0.9999  # cosine of the probe's vectors of one and the same model
_VERSION = 1
_SCHEMA = """
    CREATE TABLE about (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
    CREATE TABLE documents (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        stamp TEXT NOT NULL,
        title TEXT NOT NULL,
        uri TEXT NOT NULL
    ) STRICT;
    CREATE TABLE chunks (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        document INTEGER NOT NULL REFERENCES documents (number) ON DELETE CASCADE,
        start INTEGER NOT NULL,
        stop INTEGER NOT NULL,
        start_byte INTEGER NOT NULL,
        end_byte INTEGER NOT NULL,
        heading TEXT NOT NULL,
        page INTEGER,
        text TEXT NOT NULL,
        vector BLOB
    ) STRICT;
    CREATE INDEX chunks_document ON chunks (document);
    CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = 'porter unicode61 remove_diacritics 2');
"""
_TERM = re.compile(rf"[{UNSPACED}]+|[^\W{UNSPACED}]+")
_CHARACTER = re.compile(rf"([{UNSPACED}])")


@dataclass(frozen=True)
class Found:
    """A chunk that fits a query. score: of the fused rankings; bm25 (larger is better) and cosine of the rankings that it is in."""

    document: str
    title: str
    uri: str
    chunk: Chunk
    score: float
    bm25: float | None
    cosine: float | None


class Index:
    """May be used from several threads of one process. probe: Embedder.probe, None if there are no vectors.

    path: a file, or ":memory:" for an index that is gone when it is closed. It is made anew, empty, if there is none, if it is broken, or
    if its vectors are of another model.
    """

    def __init__(self, path: str | os.PathLike, probe: np.ndarray | None):
        self.path = Path(path)
        self._lock = threading.RLock()
        self._vectors: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        if str(path) != ":memory:":
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._connection = self._open(probe)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def put(self, name: str, chunks: Sequence[Chunk], vectors: Sequence[np.ndarray | None], title: str, uri: str, stamp: str = "") -> None:
        """Take in a document, in place of the one of this name; all of it or, if this raises or the machine stops, nothing."""
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._remove(name)
            row = (name, stamp, title, uri)
            [(document,)] = self._connection.execute(
                "INSERT INTO documents (name, stamp, title, uri) VALUES (?, ?, ?, ?) RETURNING number", row
            ).fetchall()
            for chunk, vector in zip(chunks, vectors, strict=True):
                blob = None if vector is None else np.asarray(vector, "<f4").tobytes()
                values = (document, chunk.start, chunk.end, chunk.start_byte, chunk.end_byte, chunk.heading, chunk.page, chunk.text, blob)
                inserted = self._connection.execute(
                    "INSERT INTO chunks (document, start, stop, start_byte, end_byte, heading, page, text, vector)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    values,
                ).lastrowid
                self._connection.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (inserted, spaced(searchable(title, chunk))))
            self._vectors = None

    def remove(self, name: str) -> None:
        """Forget a document, if it is there."""
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._remove(name)
            self._vectors = None

    def documents(self) -> dict[str, str]:
        """The stamps of the documents by their names."""
        return dict(self._execute("SELECT name, stamp FROM documents"))

    def count(self) -> int:
        """How many chunks there are."""
        return self._execute("SELECT count(*) FROM chunks")[0][0]

    def search(self, query: str, vector: np.ndarray | None, most: int, among: Collection[str] | None = None) -> list[Found]:
        """The chunks that fit best, the best first. vector: of the query, unit length. among: names of documents, None for all."""
        candidates = max(_LEAST_CANDIDATES, 2 * most)
        with self._lock:
            by_words = self._by_words(query, candidates, among)
            by_vector = [] if vector is None else self._by_vector(vector, candidates, among)
            words, cosines = dict(by_words), dict(by_vector)
            fused = fuse(([number for number, _ in by_words], 1.0), ([number for number, _ in by_vector], VECTOR_WEIGHT))[:most]
            rows = self._rows([number for number, _ in fused])
            return [_found(rows[number], score, words.get(number), cosines.get(number)) for number, score in fused]

    def _by_words(self, query: str, most: int, among: Collection[str] | None) -> list[tuple[int, float]]:
        """Chunks with some of the words of the query, and their BM25."""
        expression = match_expression(query)
        if not expression:
            return []
        # "+": else SQLite would look the words up for each of these chunks anew
        where, values = ("", []) if among is None else (f" AND +rowid IN ({_CHUNKS_OF})", [json.dumps(list(among))])
        found = self._execute(
            f"SELECT rowid, -bm25(words) AS score FROM words WHERE words MATCH ?{where} ORDER BY score DESC, rowid LIMIT ?",
            [expression, *values, most],
        )
        return [(number, score) for number, score in found]

    def _by_vector(self, vector: np.ndarray, most: int, among: Collection[str] | None) -> list[tuple[int, float]]:
        """The chunks whose vectors are nearest, and their cosines."""
        numbers, documents, matrix = self._loaded()
        if among is not None:
            allowed = self._execute(
                "SELECT number FROM documents WHERE name IN (SELECT value FROM json_each(?))", [json.dumps(list(among))]
            )
            which = np.isin(documents, [number for (number,) in allowed])
            numbers, matrix = numbers[which], matrix[which]
        cosines = matrix @ np.asarray(vector, np.float32) if len(numbers) else np.zeros(0, np.float32)
        best = np.lexsort((numbers, -cosines))[:most]
        return [(int(numbers[i]), float(cosines[i])) for i in best]

    def _loaded(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers int64 [N], documents int64 [N] and vectors float32 [N, D] of all chunks that have one."""
        if self._vectors is None:
            rows = self._execute("SELECT number, document, vector FROM chunks WHERE vector IS NOT NULL ORDER BY number")
            ids = np.array([row[:2] for row in rows], np.int64).reshape(-1, 2)
            matrix = np.frombuffer(b"".join(row[2] for row in rows), "<f4").reshape(len(rows), -1) if rows else np.zeros((0, 0), np.float32)
            self._vectors = ids[:, 0], ids[:, 1], matrix
        return self._vectors

    def _rows(self, numbers: list[int]) -> dict[int, tuple]:
        found = self._execute(
            "SELECT c.number, d.name, d.title, d.uri, c.text, c.start, c.stop, c.start_byte, c.end_byte, c.heading, c.page FROM chunks c"
            " JOIN documents d ON d.number = c.document WHERE c.number IN (SELECT value FROM json_each(?))",
            [json.dumps(numbers)],
        )
        return {row[0]: row[1:] for row in found}

    def _remove(self, name: str) -> None:
        self._connection.execute(f"DELETE FROM words WHERE rowid IN ({_CHUNKS_OF})", [json.dumps([name])])
        self._connection.execute("DELETE FROM documents WHERE name = ?", [name])

    def _execute(self, statement: str, values: Iterable[Any] = ()) -> list[tuple]:
        with self._lock:
            return self._connection.execute(statement, tuple(values)).fetchall()

    def _open(self, probe: np.ndarray | None) -> sqlite3.Connection:
        try:
            connection = self._connected(probe)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # no room, no rights: nothing that making it anew would help
                raise
            log.error("the index %s is broken and is made anew: %s", self.path.name, error)
            delete(self.path)
            connection = self._connected(probe)
        if connection is None:
            delete(self.path)
            connection = self._connected(probe)
        assert connection is not None
        return connection

    def _connected(self, probe: np.ndarray | None) -> sqlite3.Connection | None:
        """None if the file is of another version, or its vectors of another model."""
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                connection.execute(f"PRAGMA {setting}")
            given = b"" if probe is None else np.asarray(probe, "<f4").tobytes()
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                statements = ";".join((_SCHEMA, f"PRAGMA user_version = {_VERSION}"))
                connection.executescript(f"BEGIN IMMEDIATE; {statements}; COMMIT")
                connection.execute("INSERT INTO about VALUES ('probe', ?)", [given])
                return connection
            stored = connection.execute("SELECT value FROM about WHERE key = 'probe'").fetchone() if version == _VERSION else None
            if stored is not None and _same(stored[0], given) and connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",):
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None


_CHUNKS_OF = "SELECT c.number FROM chunks c JOIN documents d ON d.number = c.document WHERE d.name IN (SELECT value FROM json_each(?))"


def delete(path: str | os.PathLike) -> None:
    """Remove an index that is not open, if it is there."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{os.fspath(path)}{suffix}").unlink(missing_ok=True)


def spaced(text: str) -> str:
    """With a space around every character of a script without spaces, for FTS5 would take a whole sentence of it for one word."""
    return _CHARACTER.sub(r" \1 ", text)


def match_expression(query: str) -> str:
    """The words of a query as an expression of FTS5 in which any of them may fit, and none has a special meaning; "" without words. In
    scripts without spaces, where no one knows the words, every two neighbours are one."""
    terms: dict[str, None] = {}
    for term in _TERM.findall(query):
        if _CHARACTER.match(term):
            letters = [character for character in term if character.isalnum()]
            terms |= dict.fromkeys(" ".join(letters[i : i + 2]) for i in range(max(1, len(letters) - 1)))
        else:
            terms[term] = None
    return " OR ".join(f'"{term}"' for term in list(terms)[:MAX_TERMS])


def fuse(*rankings: tuple[Sequence[int], float]) -> list[tuple[int, float]]:
    """Reciprocal rank fusion: each ranking gives weight / (60 + place), places counted from 1; equal ones in the order of their numbers."""
    scores: dict[int, float] = {}
    for ranking, weight in rankings:
        for place, number in enumerate(ranking, 1):
            scores[number] = scores.get(number, 0.0) + weight / (RANK_CONSTANT + place)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def _same(stored: bytes, given: bytes) -> bool:
    if len(stored) != len(given):
        return False
    return not given or float(np.frombuffer(stored, "<f4") @ np.frombuffer(given, "<f4")) > _SAME


def _found(row: tuple, score: float, bm25: float | None, cosine: float | None) -> Found:
    name, title, uri, text, *place = row
    return Found(name, title, uri, Chunk(text, *place), score, bm25, cosine)
