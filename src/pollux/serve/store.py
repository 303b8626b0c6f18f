"""What the server keeps: records in an SQLite file and media beside it, in one folder that one server has to itself. Or the records in a
database and the media in an object store, which several servers share, each with a folder for what only it has.

What was acknowledged is there after a crash, of the machine too: a file is written among the uploads and forced to disk, then it gets
its place among the media, then its record is committed, and only then does the client get its answer. What a crash leaves half done is
found by the upload that stays until the record is there, and taken away. The layout of the folder:

    pollux.sqlite      records.py, unless they are in a database elsewhere
    media/NAME         whole files, never changed, unless they are in an object store
    copies/NAME        of objects that were read lately
    uploads/NAME       what has come of uploads that are not finished
    indexes/NAME       retrieval/index.py: of the documents of a store; can be made again from them
    lock               held by the server that runs
"""

from __future__ import annotations

import concurrent.futures
import errno
import fcntl
import logging
import os
import secrets
import string
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pollux.serve.errors import ApiError
from pollux.serve.leases import LEASE_SECONDS, Leases
from pollux.serve.media_store import MediaFolder, MediaStore, ObjectStore, sync
from pollux.serve.records import Record, Records, space
from pollux.serve.retrieval.indexes import Indexes

log = logging.getLogger("pollux.serve")

_RESERVE = 16 << 20  # bytes of the disk
_THREADS = 2  # for checks of media, which should not take all processors from the model
_LETTERS = string.ascii_lowercase + string.digits


class Store:
    """A folder, made if it is not there. objects: URL of an object store for the media. database: URL for the records, which other servers
    may use too. clock: seconds since 1970. lease: seconds after which another server goes on with what one that is gone had begun.

    Raises ValueError if another server uses the folder, a later version of pollux made it, or a URL cannot be opened.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        clock: Callable[[], float] = time.time,
        objects: str = "",
        database: str = "",
        lease: float = LEASE_SECONDS,
    ):
        if database and not objects:
            raise ValueError("servers that share a database need an object store for their files too; a shared folder is file:///folder")
        self.folder, self.clock, self.shared = Path(folder), clock, bool(database)
        media, self._uploads = self.folder / "media", self.folder / "uploads"
        for part in (self.folder, media, self._uploads):
            part.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = open(self.folder / "lock", "a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ValueError(f"{self.folder} is in use by another server; stop it, or choose another folder") from error
        try:
            self._media: MediaStore = ObjectStore(objects, self.folder / "copies") if objects else MediaFolder(media)
            self.records = Records(database or self.folder / "pollux.sqlite", clock)
        except BaseException:
            self._lock.close()
            raise
        for part in (self.folder, media, self._uploads):
            sync(part)
        self.indexes = Indexes(self.folder / "indexes")
        self.closing = threading.Event()  # tasks in the background that take long look at it
        self.leases = Leases(self.records, new_id(16), lease)
        if not database:
            self.leases.break_all()
        self._threads = concurrent.futures.ThreadPoolExecutor(_THREADS, "pollux-store")
        for file in self._uploads.iterdir():
            if self.records.has_media(file.name):
                file.unlink()  # the record came, the upload was not discarded any more
            else:
                self._take_away(file.name)
        for file in media.iterdir() if objects else ():  # kept before there was an object store
            if self.records.has_media(file.name):
                self._media.keep(file, file.name)
                file.unlink()
        self.sweep()

    def close(self) -> None:
        """Wait for what runs in the background; what has not begun does not begin."""
        self.closing.set()
        self._threads.shutdown(cancel_futures=True)
        self.indexes.close()
        self.records.close()
        self._lock.close()

    def background(self, task: Callable[[], None]) -> concurrent.futures.Future[None]:
        """Call something that takes its time on a thread of the store. What it raises goes to the log."""

        def call() -> None:
            try:
                task()
            except Exception:
                log.exception("a task of the store failed")

        return self._threads.submit(call)

    def path(self, record: Record) -> Path:
        """The file that belongs to a record. Blocks: it may have to be fetched. Raises ApiError 503 if it cannot be."""
        if record.media is None:
            raise ValueError(f"the {record.kind} {record.name} has no file")
        return self._media.path(record.media)

    def part(self, upload: str) -> Path:
        """Where the bytes of an unfinished upload lie; may not be there."""
        return self._uploads / upload

    def room(self) -> int:
        """Bytes that may still be written as media. The last of the disk are for the records, without which nothing can be deleted."""
        disk = os.statvfs(self.folder)
        return max(0, disk.f_bavail * disk.f_frsize - _RESERVE)

    def write(self, upload: str, offset: int, data: bytes) -> None:
        """Put bytes into an unfinished upload and forget what may lie behind them. On disk only after `sync`. Raises ApiError 507."""
        with space():
            if len(data) > self.room():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            descriptor = os.open(self.part(upload), os.O_WRONLY | os.O_CREAT, 0o600)
            with open(descriptor, "wb", buffering=0) as file:
                file.truncate(offset)
                file.seek(offset)
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]

    def cut(self, upload: str, size: int) -> None:
        """Forget what lies behind the first bytes of an unfinished upload, if it is there."""
        part = self.part(upload)
        if part.exists():
            os.truncate(part, size)

    def sync(self, upload: str) -> None:
        """Force an unfinished upload to disk; makes it if nothing was written yet. Raises ApiError 507."""
        with space():
            descriptor = os.open(self.part(upload), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync(self._uploads)

    def keep(self, upload: str) -> None:
        """Give a finished upload, already on disk, a place among the media, under the same name. To be followed by a record that has it as
        its medium and then `discard`, or by `abandon`."""
        with space():
            self._media.keep(self.part(upload), upload)

    def discard(self, upload: str) -> None:
        """Remove the bytes of an upload, if there are any."""
        self.part(upload).unlink(missing_ok=True)

    def abandon(self, upload: str) -> None:
        """Take back `keep`, after which no record came."""
        if not self.records.has_media(upload):
            self._take_away(upload)

    def delete(self, record: Record) -> None:
        """Take away a record, all that go with it, and their media."""
        self.records.delete(record)
        self._drop()

    def sweep(self) -> None:
        """Take away what has expired, and what is left of uploads that nobody can go on with; give free room back to the disk."""
        self.records.expire()
        self._drop()
        self._media.tidy()
        for file in self._uploads.iterdir():
            if self.records.get("upload", file.name) is None:
                file.unlink(missing_ok=True)
        try:
            self.records.compact()
        except ApiError as error:  # on a full disk SQLite has no room to do so
            log.warning("the room of deleted records could not be given back yet: %s", error)

    def _drop(self) -> None:
        """Take away the media that belong to no record any more; what does not succeed is tried again by the next sweep."""
        for name in self.records.dropped():
            if self._take_away(name):
                self.records.forget(name)

    def _take_away(self, media: str) -> bool:
        try:
            self._media.drop(media)
        except ApiError as error:
            log.warning("a file that is deleted could not be taken away yet: %s", error)
            return False
        return True


def new_id(length: int) -> str:
    """A name that cannot be guessed, of lower-case letters and digits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(length))
