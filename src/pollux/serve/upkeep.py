"""What the server does behind its requests, on a thread of its own: it ends what has expired, works on batches and films, and goes on with
what its last end interrupted."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from pollux.serve import caches, files, uploads
from pollux.serve.batch_work import BatchWork
from pollux.serve.errors import ApiError
from pollux.serve.file_search import imports
from pollux.serve.film_work import FilmWork
from pollux.serve.server import Server

log = logging.getLogger("pollux.serve")

SWEEP_SECONDS = 60.0
ABANDONED_SECONDS = 600.0  # after which a file that is not checked yet is checked again: the server that had it may be gone


class Upkeep:
    """Runs from `start` to `close`, which block until it has begun and ended; does nothing for a server without a store."""

    def __init__(self, server: Server):
        self._server = server
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work: dict[type[BatchWork | FilmWork], BatchWork | FilmWork] = {}
        self._begun = threading.Event()
        self._more: list[tuple[float, Callable[[], None]]] = []

    def also(self, seconds: float, work: Callable[[], None]) -> None:
        """Have something that blocks done every so many seconds; before `start`."""
        self._more.append((seconds, work))

    def start(self) -> None:
        if self._server.store is None:
            return
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),), name="pollux-upkeep")
        self._thread.start()
        self._begun.wait()

    def close(self) -> None:
        """What batches and films have under way is cancelled, and asked again after the next start."""
        if self._thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join()
            self._thread = self._loop = None

    def changed(self) -> None:
        """There are other batches or films than before. May be called from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        for work in self._work.values():
            work.changed()

    async def _run(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        kept = (self._kept(BatchWork), self._kept(FilmWork))
        tasks = [asyncio.create_task(work) for work in (self._sweep(), *kept, *(self._every(*more) for more in self._more))]
        self._begun.set()
        await self._end.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _sweep(self) -> None:
        """Once at the start and then every minute."""
        seconds = 0.0
        while True:
            try:
                if not seconds:
                    await asyncio.to_thread(uploads.forget_broken, self._server)
                    if not self._server.store.shared:
                        await asyncio.to_thread(imports.resume, self._server)
                await asyncio.to_thread(files.check_unfinished, self._server.store, seconds)
                seconds = ABANDONED_SECONDS
                await asyncio.to_thread(self._server.store.sweep)
                await asyncio.to_thread(caches.release_ended, self._server)
            except Exception:
                log.exception("the store could not be swept")
            self._tell()
            await asyncio.sleep(SWEEP_SECONDS)

    async def _every(self, seconds: float, work: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await asyncio.to_thread(work)
            except ApiError as error:
                log.warning("the servers of the database could not be asked: %s", error)
            except Exception:
                log.exception("something that is done every %g s failed", seconds)

    async def _kept(self, kind: type[BatchWork | FilmWork]) -> None:
        """Work on what is kept as records of a kind."""
        while True:
            work = self._work[kind] = kind(self._server)
            try:
                await work.run()
            except Exception:
                log.exception("%s stops for now", kind.__name__)
            await asyncio.sleep(SWEEP_SECONDS)
