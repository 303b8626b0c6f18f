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

from pollux.serve.errors import ApiError

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
        sync_folder(self.folder)

    def path(self, name: str) -> Path:
        return self.folder / name

    def drop(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def tidy(self) -> None:
        return


class ObjectStore:
    """A place such as s3://bucket/folder. copies: a folder for what is read. Raises ValueError for a URL that fsspec cannot open."""

    def __init__(self, url: str, copies: Path):
        try:
            self._remote, self._root = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{url} cannot be opened as an object store: {error}") from error
        self._copies = copies

    def keep(self, file: Path, name: str) -> None:
        with self._reached():
            self._remote.makedirs(self._root, exist_ok=True)
            self._remote.put_file(str(file), self._at(name))

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
            if copy.stat().st_mtime < time.time() - COPY_SECONDS:
                copy.unlink(missing_ok=True)

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Backends of fsspec raise what they like. Raises ApiError 503 for all of it but a missing object."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ApiError(503, "UNAVAILABLE", f"the object store of the server does not answer: {type(error).__name__}") from error


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk; those of files are not written with the files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
