"""Work behind the requests that is kept as records, so that it goes on after a restart, or at another server when its own is gone: what
batches (batch_work.py) and films (film_work.py) have in common."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from pollux.generate.requests import DeadlineExceeded, Overloaded
from pollux.serve.answer import whole
from pollux.serve.errors import ApiError
from pollux.serve.prepare import Plan
from pollux.serve.records import Record
from pollux.serve.server import Server
from pollux.serve.store import Store
from pollux.serve.wire.generate import GenerateContentResponse

PRIORITY = 10  # in the engine's queue, where those of 0 go first
RETRY_SECONDS = 1.0  # while the engine has no room in its queue
TRIES = 3  # for a request that is not answered in time


class LeasedWork:
    """Knows which records are this server's to work on. `changed` tells it of new ones and of those that ended, on its event loop."""

    def __init__(self, store: Store, unfinished: Callable[[Store], list[Record]]):
        self._store, self._unfinished = store, unfinished
        self._news = asyncio.Event()
        self._stale = True

    def changed(self) -> None:
        self._stale = True
        self._news.set()

    async def _renew(self) -> None:
        """Look again before the leases run out; other servers may have left records, or ended some."""
        while True:
            await asyncio.sleep(self._store.leases.renewal)
            self.changed()

    def _mine(self) -> dict[int, Record]:
        """The unfinished records that no other server works on, by number; blocks."""
        with self._store.records.transaction():  # or one could be deleted in between, and there is no lease of what is not there
            unfinished = self._unfinished(self._store)
            mine = self._store.leases.take(unfinished)
        return {record.number: record for record in unfinished if record.number in mine}

    def _let_go(self, records: Iterable[Record]) -> None:
        """Let another server have them at once; blocks."""
        for record in records:
            with contextlib.suppress(ApiError):  # then the lease runs out
                self._store.leases.drop(record)


async def stop(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def whole_in_turn(server: Server, plan: Callable[[], Plan], run: Callable) -> tuple[Plan, GenerateContentResponse]:
    """An answer, however long the engine has no room for its request. run: has the plan made, which blocks, on a thread."""
    late = 0
    while True:
        planned = await run(plan)
        try:
            return planned, await whole(server, planned)
        except Overloaded:
            await asyncio.sleep(RETRY_SECONDS)
        except DeadlineExceeded:
            late += 1
            if late == TRIES:
                raise
