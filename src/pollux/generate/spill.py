"""Bytes by name that the cache has no room for: in host memory, and in files of a folder that outlive the program; both bounded.

Files are written on a thread of their own, whole or not at all, and carry a digest: one that is damaged is not found. What was not asked
for the longest goes first. shelf.py says what the bytes are.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

SUFFIX = ".page"
_DIGEST = 32  # bytes at the start of a file
_MOST_PENDING = 1 << 30  # bytes that wait to be written


class Spill:
    """folder: made if it is not there, None for memory alone. Sizes in bytes. `put` and `get` may be called from any thread."""

    def __init__(self, folder: Path | None, folder_bytes: int, memory_bytes: int):
        self._folder, self._limit, self._memory_limit = folder, folder_bytes, memory_bytes
        self._lock, self._work = threading.Lock(), threading.Condition()
        self._files: collections.OrderedDict[str, int] = collections.OrderedDict()  # name -> size, the longest unused first
        self._memory: collections.OrderedDict[str, bytes] = collections.OrderedDict()
        self._file_bytes = self._memory_bytes = self._pending_bytes = 0
        self._pending: dict[str, Callable[[], bytes]] = {}  # not in a file yet
        self._queue: collections.deque[tuple[Sequence[str], int]] = collections.deque()
        self._closing = False
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for part in folder.glob(f"*{SUFFIX}.part"):
                part.unlink(missing_ok=True)
            found = sorted((file.stat().st_mtime_ns, file.stem, file.stat().st_size) for file in folder.glob(f"*{SUFFIX}"))
            self._files.update((name, size) for _, name, size in found)
            self._file_bytes = sum(self._files.values())
        self._thread = threading.Thread(target=self._run, name="pollux-spill", daemon=True)
        self._thread.start()

    def __contains__(self, name: str) -> bool:
        with self._lock:
            return name in self._memory or name in self._pending or name in self._files

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be written that no more is taken now."""
        return self._pending_bytes >= _MOST_PENDING

    def put(self, names: Sequence[str], data: Sequence[Callable[[], bytes]], size: int, wait: bool = False) -> None:
        """Keep some bytes, `size` of them together, unless as many as may be wait to be written already. data: each is called later, on
        another thread. wait: until there is room."""
        if wait:
            with self._work:
                self._work.wait_for(lambda: not self.is_full)
        with self._lock:
            new = {name: one for name, one in zip(names, data, strict=True) if name not in self._files and name not in self._pending}
            if self._closing or not new or self.is_full:
                return
            self._pending |= new
            self._pending_bytes += size
            self._queue.append((list(new), size))
        with self._work:
            self._work.notify_all()

    def get(self, name: str) -> bytes | None:
        """The bytes, None if they are not there or damaged."""
        with self._lock:
            found, pending = self._memory.get(name), self._pending.get(name)
            if found is not None:
                self._memory.move_to_end(name)
                return found
        if pending is not None:
            return pending()
        found = self._read(name)
        if found is not None:
            self._remember(name, found)
        return found

    def forget(self, name: str) -> None:
        """These bytes are of no use."""
        with self._lock:
            self._memory_bytes -= len(self._memory.pop(name, b""))
            self._file_bytes -= self._files.pop(name, 0)
        if self._folder is not None:
            self._file(name).unlink(missing_ok=True)

    def flush(self) -> None:
        """Wait until all that was put is kept."""
        with self._work:
            self._work.wait_for(lambda: not self._pending)

    def close(self) -> None:
        """Write what waits and end."""
        self.flush()
        with self._work:
            self._closing = True
            self._work.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                names, size = self._queue.popleft()
            for name in names:
                try:
                    data = self._pending[name]()
                    self._remember(name, data)
                    self._write(name, data)
                except Exception:
                    log.exception("a page of the cache is not kept")
            with self._work:
                with self._lock:
                    for name in names:
                        del self._pending[name]
                    self._pending_bytes -= size
                self._work.notify_all()

    def _remember(self, name: str, data: bytes) -> None:
        with self._lock:
            if len(data) > self._memory_limit or name in self._memory:
                return
            self._memory[name] = data
            self._memory_bytes += len(data)
            while self._memory_bytes > self._memory_limit:
                self._memory_bytes -= len(self._memory.popitem(last=False)[1])

    def _write(self, name: str, data: bytes) -> None:
        if self._folder is None or len(data) + _DIGEST > self._limit:
            return
        part = self._file(name).with_suffix(f"{SUFFIX}.part")
        try:
            self._make_room(len(data) + _DIGEST)
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(_digest(name, data))
                file.write(data)
            os.replace(part, self._file(name))
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            with self._lock:
                self._limit = self._file_bytes  # the disk has room for no more than this
            log.warning("%s is full: its pages of the cache may take no more than %d bytes from now on", self._folder, self._limit)
            return
        with self._lock:
            self._files[name] = len(data) + _DIGEST
            self._file_bytes += len(data) + _DIGEST

    def _make_room(self, size: int) -> None:
        while True:
            with self._lock:
                if self._file_bytes + size <= self._limit or not self._files:
                    return
                name, old = self._files.popitem(last=False)
                self._file_bytes -= old
            self._file(name).unlink(missing_ok=True)

    def _read(self, name: str) -> bytes | None:
        with self._lock:
            if name not in self._files:
                return None
            self._files.move_to_end(name)
        try:
            whole = self._file(name).read_bytes()
            with contextlib.suppress(OSError):
                os.utime(self._file(name))  # so that a later program knows what was used
        except OSError as error:
            log.warning("a page of the cache cannot be read back: %s", error)
            self.forget(name)
            return None
        data = whole[_DIGEST:]
        if whole[:_DIGEST] != _digest(name, data):
            log.warning("the file %s is damaged; what it held is computed anew", self._file(name))
            self.forget(name)
            return None
        return data

    def _file(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}{SUFFIX}"


def _digest(name: str, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST, key=name.encode()[:64]).digest()
