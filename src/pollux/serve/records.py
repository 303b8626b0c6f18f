"""The records of the server in SQLite, and all its SQL: files, caches and batches are rows of one table, told apart by their kind.

What a row means is the business of the modules above; another database takes this one's place by the same methods. All methods block,
may be called from any thread, and have written to disk what they return.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pollux.serve.errors import ApiError

BUSY_SECONDS = 30.0  # to wait for another program that writes to the same database
VERSIONS = (  # the statements that lead from each version of the schema to the next
    """
    CREATE TABLE records (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        owner TEXT NOT NULL,
        parent INTEGER REFERENCES records (number) ON DELETE CASCADE,
        created REAL NOT NULL,
        updated REAL NOT NULL,
        expires REAL,
        media TEXT,
        size INTEGER NOT NULL,
        data TEXT NOT NULL,
        UNIQUE (kind, name)
    ) STRICT;
    CREATE INDEX records_owner ON records (kind, owner, number);
    CREATE INDEX records_parent ON records (parent, kind, name);
    CREATE INDEX records_expires ON records (expires) WHERE expires IS NOT NULL;
    CREATE INDEX records_size ON records (owner) WHERE size > 0;
    CREATE INDEX records_media ON records (media) WHERE media IS NOT NULL;
    """,
)
_SETTINGS = (
    "auto_vacuum = INCREMENTAL",  # must come before the first table
    "journal_mode = WAL",
    "journal_size_limit = 67108864",
    "synchronous = FULL",
    "foreign_keys = ON",
)
_DROPPED = "dropped medium"  # the kind of a record that stands for a medium to be taken away
_KEEP: Any = object()
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Taken(ValueError):
    """There is a record of this kind and name already."""


@dataclass(frozen=True)
class Record:
    """One row. Times in seconds since 1970; `expires` is when it ceases to be found, None for never."""

    number: int  # grows with every new record
    kind: str
    name: str
    owner: str
    created: float
    updated: float
    expires: float | None
    media: str | None  # name in the media folder of what belongs to it
    size: int  # bytes of the medium
    data: dict[str, Any]


@contextlib.contextmanager
def space() -> Iterator[None]:
    """Raises ApiError 507 if the disk turns out to be full in the block."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise disk_full() from error


def disk_full() -> ApiError:
    return ApiError(507, "RESOURCE_EXHAUSTED", "the disk of the server is full; delete files, or tell its operator", "DISK_FULL")


class Records:
    """A database file. Raises ValueError if a later version of pollux made it. clock: seconds since 1970."""

    def __init__(self, path: str | os.PathLike, clock: Callable[[], float] = time.time):
        self.clock = clock
        self._lock, self._depth = threading.RLock(), 0
        self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        for setting in _SETTINGS:
            self._connection.execute(f"PRAGMA {setting}")
        with self.transaction():
            version = self._execute("PRAGMA user_version")[0][0]
            if version > len(VERSIONS):
                raise ValueError(
                    f"{os.fspath(path)} was made by a later version of pollux (schema {version}, this one knows {len(VERSIONS)})"
                )
            for number, statements in enumerate(VERSIONS[version:], version + 1):
                for statement in filter(str.strip, statements.split(";")):
                    self._execute(statement)
                self._execute(f"PRAGMA user_version = {number}")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What is called in the block happens as a whole or, if it raises, not at all."""
        with self._lock:
            if self._depth:
                yield
                return
            self._execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield
                self._execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself takes some back, for example when the disk is full
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._depth = 0

    def add(
        self,
        kind: str,
        name: str,
        data: Mapping[str, Any],
        owner: str = "",
        expires: float | None = None,
        parent: Record | None = None,
        media: str | None = None,
        size: int = 0,
    ) -> Record:
        """A new record. It goes when its parent goes. Raises Taken."""
        now = self.clock()
        row = (kind, name, owner, parent and parent.number, now, now, expires, media, size, json.dumps(data))
        with self.transaction():
            if self.get(kind, name, expired=True) is not None:
                raise Taken(f"there is a {kind} {name} already")
            self._execute(
                "INSERT INTO records (kind, name, owner, parent, created, updated, expires, media, size, data)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            found = self.get(kind, name, expired=True)
            assert found is not None
            return found

    def get(self, kind: str, name: str, expired: bool = False) -> Record | None:
        """The record, None if there is none or (unless `expired`) its time is over."""
        now = -1.0 if expired else self.clock()
        rows = self._execute("SELECT * FROM records WHERE kind = ? AND name = ? AND (expires IS NULL OR expires > ?)", (kind, name, now))
        return _record(rows[0]) if rows else None

    def update(self, record: Record, changes: Mapping[str, Any], expires: float | None = _KEEP, size: int | None = None) -> Record | None:
        """Lay the changes over the record's data as they are now. None if the record is gone."""
        with self.transaction():
            now = self.get(record.kind, record.name, expired=True)
            if now is None or now.number != record.number:
                return None
            self._execute(
                "UPDATE records SET updated = ?, expires = ?, size = ?, data = ? WHERE number = ?",
                (
                    self.clock(),
                    now.expires if expires is _KEEP else expires,
                    now.size if size is None else size,
                    json.dumps({**now.data, **changes}),
                    now.number,
                ),
            )
            return self.get(record.kind, record.name, expired=True)

    def newest(self, kind: str, owner: str, most: int, before: int | None = None) -> list[Record]:
        """An owner's living records, newest first, from below the number `before`."""
        rows = self._execute(
            "SELECT * FROM records WHERE kind = ? AND owner = ? AND number < ? AND (expires IS NULL OR expires > ?)"
            " ORDER BY number DESC LIMIT ?",
            (kind, owner, (1 << 62) if before is None else before, self.clock(), most),
        )
        return [_record(row) for row in rows]

    def all(self, kind: str) -> list[Record]:
        """The living records of a kind, whoever they belong to, oldest first."""
        rows = self._execute(
            "SELECT * FROM records WHERE kind = ? AND (expires IS NULL OR expires > ?) ORDER BY number", (kind, self.clock())
        )
        return [_record(row) for row in rows]

    def children(self, parent: Record, kind: str, after: str = "", most: int = -1) -> list[Record]:
        """Records of a kind that go with the parent, by name, from behind the name `after`."""
        rows = self._execute(
            "SELECT * FROM records WHERE parent = ? AND kind = ? AND name > ? ORDER BY name LIMIT ?", (parent.number, kind, after, most)
        )
        return [_record(row) for row in rows]

    def names(self, parent: Record, kind: str) -> set[str]:
        """The names of the records of a kind that go with the parent."""
        return {row[0] for row in self._execute("SELECT name FROM records WHERE parent = ? AND kind = ?", (parent.number, kind))}

    def used(self, owner: str) -> int:
        """Bytes of all media of an owner."""
        return self._execute("SELECT coalesce(sum(size), 0) FROM records WHERE owner = ? AND size > 0", (owner,))[0][0]

    def has_media(self, media: str) -> bool:
        """Whether some record has this medium."""
        return bool(self._execute("SELECT 1 FROM records WHERE media = ? LIMIT 1", (media,)))

    def dropped(self) -> list[str]:
        """The media of deleted records that no other has and that were not forgotten yet."""
        return [row[0] for row in self._execute("SELECT name FROM records WHERE kind = ?", (_DROPPED,))]

    def forget(self, media: str) -> None:
        """A dropped medium has been taken away."""
        self._execute("DELETE FROM records WHERE kind = ? AND name = ?", (_DROPPED, media))

    def delete(self, record: Record) -> None:
        """Take away a record and all that go with it."""
        self._delete("number = ?", (record.number,))

    def delete_children(self, parent: Record, kind: str) -> None:
        """Take away the records of a kind that go with the parent."""
        self._delete("parent = ? AND kind = ?", (parent.number, kind))

    def expire(self) -> None:
        """Take away the records whose time is over, and all that go with them."""
        self._delete("expires <= ?", (self.clock(),))

    def compact(self) -> None:
        """Give the room of deleted records back to the disk."""
        with self._lock, space():
            self._connection.executescript("PRAGMA incremental_vacuum(25000)")  # `execute` would stop after the first of these pages
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _delete(self, which: str, values: Sequence[Any]) -> None:
        """Media that then belong to nothing are noted as dropped, in the same transaction."""
        with self.transaction():
            rows = self._execute(
                f"WITH RECURSIVE gone (number) AS (SELECT number FROM records WHERE {which} UNION SELECT records.number FROM records"
                " JOIN gone ON records.parent = gone.number)"
                " SELECT DISTINCT media FROM records JOIN gone USING (number) WHERE media IS NOT NULL",
                values,
            )
            self._execute(f"DELETE FROM records WHERE {which}", values)
            for (media,) in rows:
                if not self.has_media(media):
                    self.add(_DROPPED, media, {})

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Run one statement. Raises ApiError 507 if the disk is full."""
        with self._lock, space():
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                raise


def _record(row: sqlite3.Row) -> Record:
    values = dict(row)
    values["data"] = json.loads(values["data"])
    del values["parent"]
    return Record(**values)
