"""The work on films: a few are drawn at a time, the oldest first, behind all other requests. What is under way when the server ends is
drawn again by the next one, from the same seed."""

from __future__ import annotations

import asyncio
import functools

from pollux.generate.requests import Cancelled
from pollux.serve import films
from pollux.serve.errors import RPC_CODES, api_error
from pollux.serve.leased_work import PRIORITY, LeasedWork, stop, whole_in_turn
from pollux.serve.listing import store_of
from pollux.serve.prepare import Caller
from pollux.serve.records import Record
from pollux.serve.server import Server

MOST = 2  # films that are drawn at a time


class FilmWork(LeasedWork):
    """Works on all films until `run` is cancelled."""

    def __init__(self, server: Server):
        super().__init__(store_of(server), films.unfinished)
        self._server = server
        self._found: dict[int, Record] = {}  # the unfinished ones that are this server's
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def run(self) -> None:
        renewing = asyncio.create_task(self._renew())
        try:
            while True:
                self._news.clear()
                if self._stale:
                    self._stale = False
                    self._found = await asyncio.to_thread(self._mine)
                    await stop([self._tasks[number] for number in self._tasks if number not in self._found])
                self._tasks = {number: task for number, task in self._tasks.items() if not task.done()}
                waiting = sorted(self._found.keys() - self._tasks.keys())
                for number in waiting[: max(0, MOST - len(self._tasks))]:
                    self._tasks[number] = asyncio.create_task(self._make(self._found[number]))
                await self._news.wait()
        finally:
            await stop([renewing, *self._tasks.values()])
            await asyncio.to_thread(self._let_go, self._found.values())

    async def _make(self, record: Record) -> None:
        """Draw a film and end its operation, well or with an error."""
        try:
            served = self._server.find(record.data["model"])
            plan = functools.partial(films.planned, self._server, served, record.data, Caller(record.owner, PRIORITY))
            made = await whole_in_turn(self._server, plan, asyncio.to_thread)
            await asyncio.to_thread(films.finish, self._server, record, *made)
        except Cancelled:  # the engine ends: the next start draws it
            return
        except Exception as error:
            found = api_error(error)
            error_of = {"code": RPC_CODES.get(found.status, 2), "message": found.message}
            await asyncio.to_thread(functools.partial(films.end, self._store, record, error=error_of))
        self._found.pop(record.number, None)
        self._news.set()
