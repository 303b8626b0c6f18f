"""What the server keeps on disk: records in an SQLite file and media beside it, in one folder that one server has to itself.

What was acknowledged is there after a crash, of the machine too: a file is written under another name and forced to disk, then linked to
its place, then its record is committed, and only then does the client get its answer. What a crash leaves half done is swept away at
the next start. The layout of the folder:

    pollux.sqlite      records.py
    media/NAME         whole files, never changed
    uploads/NAME       what has come of uploads that are not finished
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
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pollux.serve.records import Record, Records, space

log = logging.getLogger("pollux.serve")

_RESERVE = 16 << 20  # bytes of the disk
_THREADS = 2  # for checks of media, which should not take all processors from the model
_LETTERS = string.ascii_lowercase + string.digits


class Store:
    """A folder, made if it is not there. clock: seconds since 1970.

    Raises ValueError if another server uses the folder, or a later version of pollux made it.
    """

    def __init__(self, folder: str | os.PathLike, clock: Callable[[], float] = time.time):
        self.folder, self.clock = Path(folder), clock
        for part in (self.folder, self._media, self._uploads):
            part.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = open(self.folder / "lock", "a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ValueError(f"{self.folder} is in use by another server; stop it, or choose another folder") from error
        try:
            self.records = Records(self.folder / "pollux.sqlite", clock)
        except BaseException:
            self._lock.close()
            raise
        for part in (self.folder, self._media, self._uploads):
            _sync_folder(part)
        self._threads = concurrent.futures.ThreadPoolExecutor(_THREADS, "pollux-store")
        known = self.records.media()
        for file in self._media.iterdir():
            if file.name not in known:
                file.unlink()
        self.sweep()

    def close(self) -> None:
        """Wait for what runs in the background; what has not begun does not begin."""
        self._threads.shutdown(cancel_futures=True)
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
        """The file that belongs to a record."""
        if record.media is None:
            raise ValueError(f"the {record.kind} {record.name} has no file")
        return self._media / record.media

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
            _sync_folder(self._uploads)

    def keep(self, upload: str) -> str:
        """Give a finished upload, already on disk, a place among the media; returns its name. Its first name stays until `discard`."""
        name = new_id(32)
        with space():
            os.link(self.part(upload), self._media / name)
            _sync_folder(self._media)
        return name

    def discard(self, upload: str) -> None:
        """Remove the bytes of an upload, if there are any."""
        self.part(upload).unlink(missing_ok=True)

    def delete(self, record: Record) -> None:
        """Take away a record, all that go with it, and their media."""
        self.drop(self.records.delete(record))

    def sweep(self) -> None:
        """Take away what has expired, and what is left of uploads that nobody can go on with; give free room back to the disk."""
        self.drop(self.records.expire())
        self.records.compact()
        for file in self._uploads.iterdir():
            if self.records.get("upload", file.name) is None:
                file.unlink(missing_ok=True)

    def drop(self, media: Iterable[str]) -> None:
        """Remove media that belong to nothing any more."""
        for name in media:
            (self._media / name).unlink(missing_ok=True)

    @property
    def _media(self) -> Path:
        return self.folder / "media"

    @property
    def _uploads(self) -> Path:
        return self.folder / "uploads"


def new_id(length: int) -> str:
    """A name that cannot be guessed, of lower-case letters and digits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def _sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk; those of files are not written with the files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
