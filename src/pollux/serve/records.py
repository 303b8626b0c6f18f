"""The records of the server in a database, and all its SQL: files, caches and batches are rows of one table, told apart by their kind.

What a row means is the business of the modules above. All methods block, may be called from any thread, and have committed what they
return. Where several servers share a database, they find each other's records at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    Column,
    ColumnElement,
    Delete,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Row,
    Select,
    String,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.mysql import LONGTEXT, VARCHAR
from sqlalchemy.types import TypeEngine

from pollux.serve.databases import Database
from pollux.serve.errors import ApiError, disk_full

LONGEST_NAME = 255  # characters
_DROPPED = "dropped medium"  # the kind of a record that stands for a medium to be taken away
_UPLOAD = "upload"  # the kind of records whose name is that of a medium that may come to be
_EVERYTHING = 1 << 62
_KEEP: Any = object()
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_number = BigInteger().with_variant(Integer(), "sqlite")
_seconds: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")
_word = (  # names are equal and in order by their bytes
    String(LONGEST_NAME, collation="C")
    .with_variant(Text(), "sqlite")
    .with_variant(VARCHAR(LONGEST_NAME, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
)
_metadata = MetaData()
_table = Table(
    "records",
    _metadata,
    Column("number", _number, primary_key=True, autoincrement=True),
    Column("kind", _word, nullable=False),
    Column("name", _word, nullable=False),
    Column("owner", _word, nullable=False),
    Column("parent", _number, ForeignKey("records.number", ondelete="CASCADE")),
    Column("created", _seconds, nullable=False),
    Column("updated", _seconds, nullable=False),
    Column("expires", _seconds),
    Column("media", _word),
    Column("size", _number, nullable=False),
    Column("data", Text().with_variant(LONGTEXT(), "mysql", "mariadb"), nullable=False),
    UniqueConstraint("kind", "name"),
    sqlite_autoincrement=True,
    sqlite_strict=True,
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)
_c = _table.c
Index("records_owner", _c.kind, _c.owner, _c.number)
Index("records_parent", _c.parent, _c.kind, _c.name)
for _name, _column, _where in (
    ("records_expires", _c.expires, _c.expires.is_not(None)),
    ("records_size", _c.owner, _c.size > 0),
    ("records_media", _c.media, _c.media.is_not(None)),
):
    Index(_name, _column, sqlite_where=_where, postgresql_where=_where)

VERSIONS = (_metadata.create_all,)  # what leads from each version of the schema to the next


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
    media: str | None  # name among the media of what belongs to it
    size: int  # bytes of the medium
    data: dict[str, Any]


_found = select(*(_c[field.name] for field in fields(Record)))
_living = or_(_c.expires.is_(None), _c.expires > bindparam("now"))
_most = bindparam("most", type_=_number)
_GET = _found.where(_c.kind == bindparam("kind"), _c.name == bindparam("name"), _living)
_NEWEST = (
    _found.where(_c.kind == bindparam("kind"), _c.owner == bindparam("owner"), _c.number < bindparam("before"), _living)
    .order_by(_c.number.desc())
    .limit(_most)
)
_ALL = _found.where(_c.kind == bindparam("kind"), _living).order_by(_c.number)
_CHILDREN = (
    _found.where(_c.parent == bindparam("parent"), _c.kind == bindparam("kind"), _c.name > bindparam("after"))
    .order_by(_c.name)
    .limit(_most)
)
_NAMES = select(_c.name).where(_c.parent == bindparam("parent"), _c.kind == bindparam("kind"))
_USED = select(func.coalesce(func.sum(_c.size), 0)).where(_c.owner == bindparam("owner"), _c.size > 0)
_HAS_MEDIA = select(_c.number).where(_c.media == bindparam("media")).limit(1)
_DROPPED_NAMES = select(_c.name).where(_c.kind == _DROPPED)
_FORGET = delete(_table).where(_c.kind == _DROPPED, _c.name == bindparam("name"))
_UPDATE = (
    update(_table).where(_c.number == bindparam("which")).values({name: bindparam(name) for name in ("updated", "expires", "size", "data")})
)
_INSERT = insert(_table)


def _taking_away(which: ColumnElement[bool]) -> tuple[Select, Delete]:
    """What finds the media of some records and of all that go with them, and what deletes these."""
    gone = select(_c.number).where(which).cte("gone", recursive=True)
    gone = gone.union(select(_c.number).join(gone, _c.parent == gone.c.number))
    found = select(_c.kind, _c.name, _c.media).join(gone, _c.number == gone.c.number)
    return found.where(or_(_c.media.is_not(None), _c.kind == _UPLOAD)), delete(_table).where(which)


_ONE = _taking_away(_c.number == bindparam("which"))
_CHILDREN_OF = _taking_away((_c.parent == bindparam("which")) & (_c.kind == bindparam("kind")))
_EXPIRED = _taking_away(_c.expires <= bindparam("now"))


@contextlib.contextmanager
def space() -> Iterator[None]:
    """Raises ApiError 507 if the disk turns out to be full in the block."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise disk_full() from error


class Records:
    """place: an SQLite file, or the URL of a database. clock: seconds since 1970.

    Raises ValueError if a later version of pollux made it, or it cannot be opened.
    """

    def __init__(self, place: str | os.PathLike, clock: Callable[[], float] = time.time):
        self.clock = clock
        self._database = Database(place)
        try:
            self._database.upgrade(_metadata, VERSIONS)
            self._database.check_clock()
        except ApiError as error:
            self.close()
            raise ValueError(f"{self._database.name} cannot be used: {error}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._database.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What is called in the block happens as a whole or, if it raises, not at all, and nobody else writes meanwhile."""
        with self._database.transaction():
            yield

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
        row = {
            **{"kind": kind, "name": name, "owner": owner, "parent": parent and parent.number, "created": now, "updated": now},
            **{"expires": expires, "media": media, "size": size, "data": json.dumps(data)},
        }
        with self.transaction():
            if self.get(kind, name, expired=True) is not None:
                raise Taken(f"there is a {kind} {name} already")
            [[row["number"]]] = self._database.execute(_INSERT, row)
        return _record(row)

    def get(self, kind: str, name: str, expired: bool = False) -> Record | None:
        """The record, None if there is none or (unless `expired`) its time is over."""
        if len(name) > LONGEST_NAME or not name.isprintable():  # which some databases refuse to look for
            return None
        rows = self._database.execute(_GET, {"kind": kind, "name": name, "now": -1.0 if expired else self.clock()})
        return next((_of(row) for row in rows if row.name == name), None)  # MySQL looks away from spaces at the end

    def update(self, record: Record, changes: Mapping[str, Any], expires: float | None = _KEEP, size: int | None = None) -> Record | None:
        """Lay the changes over the record's data as they are now. None if the record is gone."""
        with self.transaction():
            now = self.get(record.kind, record.name, expired=True)
            if now is None or now.number != record.number:
                return None
            row = {
                "updated": self.clock(),
                "expires": now.expires if expires is _KEEP else expires,
                "size": now.size if size is None else size,
                "data": json.dumps({**now.data, **changes}),
            }
            self._database.execute(_UPDATE, {"which": now.number, **row})
        return _record({**vars(now), **row})

    def newest(self, kind: str, owner: str, most: int, before: int | None = None) -> list[Record]:
        """An owner's living records, newest first, from below the number `before`."""
        values = {"kind": kind, "owner": owner, "before": _EVERYTHING if before is None else before, "now": self.clock(), "most": most}
        return [_of(row) for row in self._database.execute(_NEWEST, values)]

    def all(self, kind: str) -> list[Record]:
        """The living records of a kind, whoever they belong to, oldest first."""
        return [_of(row) for row in self._database.execute(_ALL, {"kind": kind, "now": self.clock()})]

    def children(self, parent: Record, kind: str, after: str = "", most: int = _EVERYTHING) -> list[Record]:
        """Records of a kind that go with the parent, by name, from behind the name `after`."""
        values = {"parent": parent.number, "kind": kind, "after": after, "most": most}
        return [_of(row) for row in self._database.execute(_CHILDREN, values)]

    def names(self, parent: Record, kind: str) -> set[str]:
        """The names of the records of a kind that go with the parent."""
        return {name for (name,) in self._database.execute(_NAMES, {"parent": parent.number, "kind": kind})}

    def used(self, owner: str) -> int:
        """Bytes of all media of an owner."""
        return int(self._database.execute(_USED, {"owner": owner})[0][0])

    def has_media(self, media: str) -> bool:
        """Whether some record has this medium."""
        return bool(self._database.execute(_HAS_MEDIA, {"media": media}))

    def dropped(self) -> list[str]:
        """The media of deleted records that no other has and that were not forgotten yet."""
        return [name for (name,) in self._database.execute(_DROPPED_NAMES)]

    def forget(self, media: str) -> None:
        """A dropped medium has been taken away."""
        with self.transaction():
            self._database.execute(_FORGET, {"name": media})

    def delete(self, record: Record) -> None:
        """Take away a record and all that go with it."""
        self._delete(_ONE, {"which": record.number})

    def delete_children(self, parent: Record, kind: str) -> None:
        """Take away the records of a kind that go with the parent."""
        self._delete(_CHILDREN_OF, {"which": parent.number, "kind": kind})

    def expire(self) -> None:
        """Take away the records whose time is over, and all that go with them."""
        self._delete(_EXPIRED, {"now": self.clock()})

    def compact(self) -> None:
        """Give the room of deleted records back to the disk."""
        self._database.compact()

    def _delete(self, which: tuple[Select, Delete], values: Mapping[str, Any]) -> None:
        """Media that then belong to nothing are noted as dropped, in the same transaction; those of unfinished uploads too, since a server
        may have ended between keeping them and their record."""
        found, gone = which
        with self.transaction():
            rows = self._database.execute(found, values)
            self._database.execute(gone, values)
            for media in {row.name if row.kind == _UPLOAD else row.media for row in rows}:
                if not self.has_media(media) and self.get(_DROPPED, media) is None:
                    self.add(_DROPPED, media, {})


def _of(row: Row) -> Record:
    values = list(row)
    values[-1] = json.loads(values[-1])
    return Record(*values)


def _record(values: Mapping[str, Any]) -> Record:
    """values: the columns, with `data` as JSON."""
    return Record(**{field.name: values[field.name] for field in fields(Record)} | {"data": json.loads(values["data"])})
