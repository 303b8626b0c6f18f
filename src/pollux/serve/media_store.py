"""Where whole files lie: in a folder beside the records, or in an object store that fsspec reaches by a URL, with copies here for a while.

Both keep a file under a name for good, give a path to read it from, and forget names. store.py decides what is kept and for how long.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pollux.serve.errors import ApiError
from pollux.serve.records import space

COPY_SECONDS = 3600.0  # after its last use that a copy of an object stays here


class MediaStore(Protocol):
    """All methods block."""

    def keep(self, file: Path, name: str) -> None:
        """Take a file that is on disk; it is there to stay when this returns. The file itself is left alone."""

    def path(self, name: str) -> Path:
        """Where to read it."""

    def drop(self, name: str) -> None:
        """Forget it, if it is there."""

    def tidy(self) -> None:
        """Remove what is only in the way."""


class MediaFolder:
    """A folder on the disk of the files that are kept: they are linked, not copied."""

    def __init__(self, folder: Path):
        self.folder = folder

    def keep(self, file: Path, name: str) -> None:
        with contextlib.suppress(FileExistsError):  # after a crash between this and the record
            os.link(file, self.folder / name)
        sync(self.folder)

    def path(self, name: str) -> Path:
        return self.folder / name

    def drop(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def tidy(self) -> None:
        return


class ObjectStore:
    """A place such as s3://bucket/folder. copies: a folder for what is read, made if it is not there. Raises ValueError for a URL that
    fsspec cannot open."""

    def __init__(self, url: str, copies: Path):
        try:
            self._remote, self._root = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{url} cannot be opened as an object store: {error}") from error
        self._copies = copies
        copies.mkdir(mode=0o700, exist_ok=True)
        for copy in copies.iterdir():  # the end of the machine may have torn it
            copy.unlink()

    def keep(self, file: Path, name: str) -> None:
        with self._reached():
            self._remote.makedirs(self._root, exist_ok=True)
            self._remote.put_file(str(file), self._at(name))
            if isinstance(self._remote, LocalFileSystem):  # which leaves to the system when bytes reach the disk
                sync(Path(self._at(name)))
                sync(Path(self._root))

    def path(self, name: str) -> Path:
        copy = self._copies / name
        try:
            os.utime(copy)
        except FileNotFoundError:
            part = self._copies / f"{name}.{time.monotonic_ns()}"
            try:
                with self._reached():
                    self._remote.get_file(self._at(name), str(part))
                os.replace(part, copy)
            finally:
                part.unlink(missing_ok=True)
        return copy

    def drop(self, name: str) -> None:
        with self._reached(), contextlib.suppress(FileNotFoundError):
            self._remote.rm_file(self._at(name))
        (self._copies / name).unlink(missing_ok=True)

    def tidy(self) -> None:
        for copy in self._copies.iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was a part, or its record has gone
                if copy.stat().st_mtime < time.time() - COPY_SECONDS:
                    copy.unlink()

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Backends of fsspec raise what they like. Raises ApiError: 507 for a full disk, 503 for all else but a missing object."""
        try:
            with space():
                yield
        except (FileNotFoundError, ApiError):
            raise
        except Exception as error:
            raise ApiError(503, "UNAVAILABLE", f"the object store of the server does not answer: {type(error).__name__}") from error


def sync(path: Path) -> None:
    """Force a file to disk, or the names in a folder: those of files are not written with the files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
