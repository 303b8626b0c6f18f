"""The work on batches: their requests go through the same code as those of generateContent and embedContent, behind all others.

A few requests are under way at a time, of the batch with the highest priority, and of all that share it in turn. A result is written
when it comes; what is under way when the server ends is asked again by the next one. A batch is worked on by the server that has its
lease.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import json
import logging
from collections.abc import Callable
from typing import Any

from pollux.generate.requests import Cancelled
from pollux.serve import batches
from pollux.serve.embeddings import embed
from pollux.serve.errors import RPC_CODES, ApiError, api_error, invalid
from pollux.serve.leased_work import PRIORITY, LeasedWork, stop, whole_in_turn
from pollux.serve.listing import store_of
from pollux.serve.openai import errors as openai_errors
from pollux.serve.openai.asked import to_gemini
from pollux.serve.openai.messages import ChatRequest, EmbeddingRequest
from pollux.serve.openai.routes import embedded
from pollux.serve.openai.stream import find
from pollux.serve.openai.written import Completion
from pollux.serve.prepare import Caller, prepare
from pollux.serve.records import Record
from pollux.serve.server import Served, Server
from pollux.serve.wire.embed import EmbedContentRequest, EmbedContentResponse
from pollux.serve.wire.generate import GenerateContentRequest, GenerateContentResponse
from pollux.serve.wire.message import parse, to_json

log = logging.getLogger("pollux.serve")

_THREADS = 2  # that read media and tokenise for batches


class _Open:
    """A batch that is worked on."""

    def __init__(self, record: Record, items: Any):
        self.record, self.items = record, items
        self.exhausted = False
        self.tasks: set[asyncio.Task[None]] = set()
        self.turn = 0  # grows with every request taken from any batch; who waits longest is next


class BatchWork(LeasedWork):
    """Works on all batches until `run` is cancelled."""

    def __init__(self, server: Server):
        super().__init__(store_of(server), batches.unfinished)
        self._server = server
        self._threads = concurrent.futures.ThreadPoolExecutor(_THREADS, "pollux-batch")
        self._open: dict[int, _Open] = {}
        self._turns = 0

    async def run(self) -> None:
        renewing = asyncio.create_task(self._renew())
        try:
            while True:
                self._news.clear()
                if self._stale:
                    await self._look()
                while self._under_way() < self._server.settings.batch_requests and (batch := self._next()):
                    await self._begin(batch)
                await self._close_finished()
                await self._news.wait()
        finally:
            await stop([renewing, *(task for batch in self._open.values() for task in batch.tasks)])
            await self._run(self._let_go, [batch.record for batch in self._open.values()])
            self._threads.shutdown()

    async def _look(self) -> None:
        """Open the batches that are new, and drop those that are gone or another server's."""
        self._stale = False
        found = await self._run(self._mine)
        for number in [number for number in self._open if number not in found]:
            await stop(self._open.pop(number).tasks)
        for number, record in found.items():
            if number not in self._open:
                self._open[number] = _Open(record, batches.items(self._store, record))

    def _under_way(self) -> int:
        return sum(len(batch.tasks) for batch in self._open.values())

    def _next(self) -> _Open | None:
        waiting = [batch for batch in self._open.values() if not batch.exhausted]
        return min(waiting, key=lambda batch: (-batch.record.data["priority"], batch.turn, batch.record.number), default=None)

    async def _begin(self, batch: _Open) -> None:
        """Take one request of a batch and start on it."""
        self._turns += 1
        batch.turn = self._turns
        try:
            if self._store.clock() > batch.record.created + batches.LIFETIME:
                await self._give_up(batch, "BATCH_STATE_EXPIRED", "")
                return
            item = await self._run(next, batch.items, None)
        except Exception as error:
            await self._give_up(batch, "BATCH_STATE_FAILED", api_error(error).message)
            return
        if item is None:
            batch.exhausted = True
            return
        if not batch.tasks:
            await self._run(batches.begin, self._store, batch.record)
        task = asyncio.create_task(self._answer(batch, *item))
        batch.tasks.add(task)
        task.add_done_callback(functools.partial(self._ended, batch))

    def _ended(self, batch: _Open, task: asyncio.Task[None]) -> None:
        batch.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the work on batches/%s stops for now", batch.record.name, exc_info=error)
            self._leave(batch)
        self._news.set()

    def _leave(self, batch: _Open, but: asyncio.Task[None] | None = None) -> None:
        """Stop the work on a batch; the next look opens it again if it is still to be worked on here."""
        self._open.pop(batch.record.number, None)
        for task in batch.tasks - {but}:
            task.cancel()

    async def _close_finished(self) -> None:
        for batch in [batch for batch in self._open.values() if batch.exhausted and not batch.tasks]:
            try:
                await self._run(batches.finish, self._server, batch.record)
            except ApiError as error:  # no room, or no answer from the object store: a later look tries again
                log.error("the results of batches/%s cannot be given out yet: %s", batch.record.name, error)
            except Exception as error:
                await self._give_up(batch, "BATCH_STATE_FAILED", api_error(error).message)
            self._open.pop(batch.record.number, None)

    async def _give_up(self, batch: _Open, state: str, message: str) -> None:
        self._open.pop(batch.record.number, None)
        await stop(batch.tasks)
        await self._run(functools.partial(batches.end, self._store, batch.record, state, error=message))

    async def _answer(self, batch: _Open, number: int, item: dict[str, Any]) -> None:
        """Find the result of one request and keep it."""
        for_openai = bool(batch.record.data.get("endpoint"))
        try:
            response = await self._response(batch.record, item)
            result: dict[str, Any] = {"response": {"status_code": 200, "body": response} if for_openai else response}
        except Cancelled:  # the engine ends: no result of the request
            raise
        except Exception as error:
            found = api_error(error)
            result = {"error": {"code": RPC_CODES.get(found.status, 2), "message": found.message, "status": found.status}}
            if for_openai:
                result["response"] = {"status_code": found.code, "body": openai_errors.body(found)}
        given = {name: item[name] for name in ("key", "metadata", "custom_id") if name in item}
        if not await self._run(self._keep, batch.record, number, given | result):
            self._leave(batch, asyncio.current_task())
            self.changed()

    async def _response(self, record: Record, item: dict[str, Any]) -> dict[str, Any]:
        if "error" in item:
            raise invalid(item["error"])
        if item["request"] is None:
            raise invalid("request is missing")
        request = item["request"]
        if endpoint := record.data.get("endpoint"):
            return await (self._chat if endpoint == "/v1/chat/completions" else self._embeddings)(request, record.owner)
        served = self._server.find(record.data["model"])
        if record.data["embeds"]:
            message = parse(EmbedContentRequest, request)[0]
            return to_json(EmbedContentResponse(await self._run(embed, self._server, served, message, "", record.owner)))
        asked = parse(GenerateContentRequest, request)[0]
        if asked.model:
            served = self._server.find(asked.model)
        return to_json(await self._whole(served, asked, record.owner))

    async def _chat(self, request: dict[str, Any], owner: str) -> dict[str, Any]:
        """A chat completion."""
        asked = parse(ChatRequest, request)[0]
        if asked.stream:
            raise invalid("a request of a batch has no stream")
        response = await self._whole(find(self._server, asked.model), to_gemini(asked, []), owner)
        return Completion(asked.model, asked.logprobs).whole(response)

    async def _embeddings(self, request: dict[str, Any], owner: str) -> dict[str, Any]:
        return await embedded(self._server, parse(EmbeddingRequest, request)[0], owner, self._run)

    async def _whole(self, served: Served, asked: GenerateContentRequest, owner: str) -> GenerateContentResponse:
        plan = functools.partial(prepare, self._server, served, asked, Caller(owner, PRIORITY))
        return (await whole_in_turn(self._server, plan, self._run))[1]

    def _keep(self, record: Record, number: int, result: dict[str, Any]) -> bool:
        """False if the batch has ended, or is another server's now."""
        records = self._store.records
        with records.transaction():
            now = records.get("batch", record.name)
            if now is None or now.data["state"] not in batches.UNFINISHED or not self._store.leases.take([record]):
                return False
            name = batches.item_name(record, number)
            if records.get("batch_result", name) is not None:
                return True
            records.add("batch_result", name, result, record.owner, parent=now, size=len(json.dumps(result)))
            which = "failed" if "error" in result else "succeeded"
            records.update(now, {which: now.data[which] + 1})
        return True

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
