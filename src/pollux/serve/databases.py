"""The database of the records, reached by SQLAlchemy: an SQLite file, PostgreSQL, or MySQL and MariaDB; what differs between them is here.

A statement is committed by itself, unless it stands in a transaction. Of these there is one at a time, in all programs that use the
database: what a transaction has read stays true until its end, and new rows are seen in the order of their numbers.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Executable, MetaData, Row, exc

from pollux.serve.errors import ApiError, disk_full

log = logging.getLogger("pollux.serve")

BUSY_SECONDS = 30  # to wait for another program that writes to the same database
MOST_SKEW = 5.0  # seconds between the clocks of this machine and of the database
_CONNECTIONS = 8  # that stay open; as many more come and go
_MYSQL_PASSING = (1040, 1053, 1205, 1213)  # too many connections, shutdown, waited too long for a lock, deadlock
_SQLITE_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)


@dataclass(frozen=True)
class _Kind:
    """What is said to a database of one kind."""

    driver: str  # that an address without one means
    settings: tuple[str, ...]  # of every connection
    begin: tuple[str, ...]  # a transaction that no other one runs beside
    alone: tuple[str, ...]  # to change the schema while nobody else does
    together: tuple[str, ...]  # after that
    version: str  # of the schema
    set_version: str
    now: str = ""  # seconds since 1970; "" if that is the clock of this machine


_VERSION_TABLE = (
    "CREATE TABLE IF NOT EXISTS pollux_schema (version INTEGER NOT NULL)",
    "INSERT INTO pollux_schema (version) SELECT 0 WHERE NOT EXISTS (SELECT version FROM pollux_schema)",
)
_VERSION, _SET_VERSION = "SELECT version FROM pollux_schema", "UPDATE pollux_schema SET version = {}"
_POSTGRESQL_LOCK = "SELECT pg_advisory_xact_lock(80111108)"  # a number of our own
_MYSQL = _Kind(
    driver="pymysql",
    settings=(
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        f"SET SESSION innodb_lock_wait_timeout = {BUSY_SECONDS}",
        f"SET SESSION wait_timeout = {BUSY_SECONDS}",  # of a replica whose machine is gone: its transaction ends with its connection
    ),
    begin=("START TRANSACTION", f"{_VERSION} FOR UPDATE"),
    alone=(f"SELECT GET_LOCK('pollux', {BUSY_SECONDS})", *_VERSION_TABLE),
    together=("SELECT RELEASE_LOCK('pollux')",),
    version=_VERSION,
    set_version=_SET_VERSION,
    now="SELECT UNIX_TIMESTAMP(NOW(6))",
)
_KINDS = {
    "sqlite": _Kind(
        driver="pysqlite",
        settings=(
            "PRAGMA auto_vacuum = INCREMENTAL",  # must come before the first table
            "PRAGMA journal_mode = WAL",
            "PRAGMA journal_size_limit = 67108864",
            "PRAGMA synchronous = FULL",
            "PRAGMA foreign_keys = ON",
        ),
        begin=("BEGIN IMMEDIATE",),
        alone=("BEGIN IMMEDIATE",),
        together=("COMMIT",),
        version="PRAGMA user_version",
        set_version="PRAGMA user_version = {}",
    ),
    "postgresql": _Kind(
        driver="psycopg",
        settings=(
            f"SET lock_timeout = '{BUSY_SECONDS}s'",
            f"SET idle_in_transaction_session_timeout = '{BUSY_SECONDS}s'",  # of a replica whose machine is gone
        ),
        begin=("BEGIN ISOLATION LEVEL READ COMMITTED", _POSTGRESQL_LOCK),  # of others a snapshot is older than the lock
        alone=("BEGIN", _POSTGRESQL_LOCK, *_VERSION_TABLE),
        together=("COMMIT",),
        version=_VERSION,
        set_version=_SET_VERSION,
        now="SELECT extract(epoch FROM clock_timestamp())",
    ),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}


class Database:
    """place: an SQLite file or a URL of SQLAlchemy. May be used from any thread. Raises ValueError if it cannot be opened."""

    def __init__(self, place: str | os.PathLike):
        self._url = _url(place)
        self._kind = _KINDS[self._url.get_backend_name()]
        self.name = self._url.render_as_string(hide_password=True) if "://" in os.fspath(place) else os.fspath(place)
        self._writing = threading.Lock()  # fairer than the waiting of the database, and a connection less
        self._local = threading.local()
        more: dict[str, Any] = {"pool_pre_ping": True, "pool_recycle": 3600}
        if self.is_file:
            more = {"connect_args": {"timeout": BUSY_SECONDS, "check_same_thread": False}}
        try:
            self._engine = sqlalchemy.create_engine(
                self._url,
                isolation_level="AUTOCOMMIT",
                skip_autocommit_rollback=True,
                pool_reset_on_return=None,
                pool_size=_CONNECTIONS,
                max_overflow=_CONNECTIONS,
                pool_timeout=BUSY_SECONDS,
                **more,
            )
        except ImportError as error:
            raise ValueError(f"{self.name} needs the package {error.name}: pip install 'pollux[sql]'") from error
        sqlalchemy.event.listen(self._engine, "connect", self._set)
        try:
            self._engine.connect().close()
        except exc.DBAPIError as error:
            self.close()
            raise ValueError(f"{self.name} cannot be opened as a database: {_text(error)}") from error

    @property
    def is_file(self) -> bool:
        """Whether it is SQLite."""
        return self._url.get_backend_name() == "sqlite"

    def close(self) -> None:
        self._engine.dispose()

    def upgrade(self, metadata: MetaData, versions: Sequence[Callable[[Connection], None]]) -> None:
        """Make the tables of the latest version of the schema; each of `versions` leads from the one before to the next.

        Raises ValueError if a later version of pollux has been here.
        """
        with self._checked(), self._engine.connect() as connection:
            try:
                self._say(connection, self._kind.alone)
                [[version]] = self._say(connection, [self._kind.version])
                if version > len(versions):
                    raise ValueError(
                        f"{self.name} was made by a later version of pollux (schema {version}, this one knows {len(versions)})"
                    )
                for number, lead in enumerate(versions[version:], version + 1):
                    lead(connection)
                    self._say(connection, [self._kind.set_version.format(number)])
                self._say(connection, self._kind.together)
            except BaseException:
                connection.invalidate()  # takes back what was not committed, and opens the lock
                raise

    def check_clock(self) -> None:
        """Raises ValueError if this machine has another time than the database: leases and lifetimes are times that replicas share."""
        if self._kind.now:
            skew = time.time() - float(self.execute(sqlalchemy.text(self._kind.now))[0][0])
            if abs(skew) > MOST_SKEW:
                raise ValueError(f"the clock of this machine is {skew:.0f} s ahead of that of {self.name}; set both by NTP")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What is executed in the block happens as a whole or, if it raises, not at all. Raises ApiError as `execute` does."""
        if getattr(self._local, "connection", None) is not None:
            yield
            return
        with self._writing, self._checked(), self._engine.connect() as connection:
            try:
                self._say(connection, self._kind.begin)
                self._local.connection = connection
                yield
                self._say(connection, ["COMMIT"])
            except BaseException:
                try:
                    self._say(connection, ["ROLLBACK"])
                except exc.DBAPIError:  # the connection is broken; or SQLite has rolled back itself, for example on a full disk
                    connection.invalidate()
                raise
            finally:
                self._local.connection = None

    def execute(self, statement: Executable, values: Mapping[str, Any] | None = None) -> list[Row]:
        """The rows of a query, or of an INSERT one with its new key. Raises ApiError: 507 for a full disk, 503 for no answer."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            return _rows(connection.execute(statement, values))
        with self._checked(), self._engine.connect() as connection:
            return _rows(connection.execute(statement, values))

    def compact(self) -> None:
        """Give the room of deleted rows back to the disk, where the database does not see to that itself."""
        if not self.is_file:
            return
        with self._writing, self._checked(), self._engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            raw.executescript("PRAGMA incremental_vacuum(25000)")  # `execute` would stop after the first of these pages
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _set(self, raw: Any, _: Any) -> None:
        cursor = raw.cursor()
        for setting in self._kind.settings:
            cursor.execute(setting)
        cursor.close()

    def _say(self, connection: Connection, statements: Sequence[str]) -> list[Row]:
        """Execute SQL as it stands; returns the rows of the last statement."""
        rows: list[Row] = []
        for statement in statements:
            result = connection.exec_driver_sql(statement)
            rows = list(result.fetchall()) if result.returns_rows else []
        return rows

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        """Raises what the database raises in the block as ApiError, if it is a state of things and no mistake of ours."""
        try:
            yield
        except sqlite3.OperationalError as error:  # of a statement that did not go through SQLAlchemy
            if error.sqlite_errorcode in _SQLITE_FULL:
                raise disk_full() from error
            raise
        except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
            original = getattr(error, "orig", None)
            if _is_full(original):
                raise disk_full() from error
            if not _may_pass(original):
                raise
            log.error("the database does not answer: %s", _text(error))
            message = "the database of the server does not answer; try again later"
            raise ApiError(503, "UNAVAILABLE", message, headers={"Retry-After": "1"}) from error


def _url(place: str | os.PathLike) -> sqlalchemy.URL:
    """Raises ValueError."""
    text = os.fspath(place)
    if "://" not in text:
        return sqlalchemy.URL.create("sqlite+pysqlite", database=text)
    try:
        url = sqlalchemy.make_url(text)
    except (exc.ArgumentError, ValueError) as error:
        raise ValueError("the URL of the database must be like postgresql+psycopg://user:password@host/name") from error
    kind = url.get_backend_name()
    if kind not in _KINDS:
        raise ValueError(f"the database is of the kind {kind}, but must be one of {', '.join(_KINDS)}")
    if "+" not in url.drivername:
        url = url.set(drivername=f"{kind}+{_KINDS[kind].driver}")
    if kind == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("a database in memory keeps nothing; give a file, like sqlite:////folder/file")
    if kind in ("mysql", "mariadb"):
        url = url.update_query_dict({"charset": "utf8mb4"})
    return url


def _rows(result: Any) -> list[Row]:
    if result.is_insert:
        return [result.inserted_primary_key]
    return list(result.fetchall()) if result.returns_rows else []


def _is_full(error: Any) -> bool:
    """Whether a driver says that there is no room on the disk of the database."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) in _SQLITE_FULL
    if getattr(error, "sqlstate", None) == "53100":
        return True
    return bool(error is not None and error.args and error.args[0] in (1021, 1114, errno.ENOSPC))


def _may_pass(error: Any) -> bool:
    """Whether what went wrong is a connection, or the waiting for others, of the errors that drivers call operational."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
    code = error.args[0] if error is not None and error.args else None
    return not isinstance(code, int) or code >= 2000 or code in _MYSQL_PASSING or code == 0


def _text(error: Exception) -> str:
    """What the driver said, on one line."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
