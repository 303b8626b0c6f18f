"""The routes of interactions: a turn is answered at once, as events, or in the background; later it is read, resumed or deleted.

A request becomes one of generateContent and takes its path. A run that has ended is a record in the store, where the next turn
finds it. One in the background is a record from its start: other servers of the same store tell by its lease whether it is still
written, follow it there, and leave in it the wish that it be cancelled.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from pollux.serve import files
from pollux.serve.errors import ApiError, api_error, invalid, not_found
from pollux.serve.generate import caller_of, to_the_end, unless_left
from pollux.serve.interactions.asked import generate_request
from pollux.serve.interactions.run import RUNNING, Run
from pollux.serve.interactions.steps import Json, read_input, read_steps
from pollux.serve.listing import owner_of, store_of
from pollux.serve.prepare import Caller, Plan, prepare
from pollux.serve.server import Server
from pollux.serve.store import new_id
from pollux.serve.times import rfc3339
from pollux.serve.wire.body import read
from pollux.serve.wire.interactions import CreateInteraction

LIFETIME = 55 * 24 * 3600.0  # seconds that an interaction is remembered
MOST_TURNS = 10_000  # that one conversation may have
WATCH_SECONDS = 2.0  # between looks at what other servers did to a run in the background

log = logging.getLogger("pollux.serve")

_running: weakref.WeakKeyDictionary[Server, dict[str, Run]] = weakref.WeakKeyDictionary()


def routes(server: Server) -> list[BaseRoute]:
    runs = _running.setdefault(server, {})

    async def create(request: Request) -> Response:
        asked = await read(CreateInteraction, request)
        run, plan, ignored = await server.run(_begin, server, asked, caller_of(request))
        request.state.ignored += ignored
        if asked.background:
            await server.run(_store, server, run, RUNNING)
        runs[run.id] = run
        run.task = asyncio.create_task(_finish(server, runs, run, plan, asked.store and server.store is not None))
        if asked.background:
            run.watch = asyncio.create_task(_watch(server, run))
        if asked.stream:
            return _events(run, "", leave=not asked.background)
        if not asked.background:
            try:
                await unless_left(request, run.wait())
            except ApiError:
                run.task.cancel()
                raise
            if run.error is not None:
                raise run.error
        return JSONResponse(run.shown())

    async def get(request: Request) -> Response:
        run = await found(request)
        if request.query_params.get("stream") == "true":
            _follow(server, run)
            return _events(run, request.query_params.get("last_event_id", ""), leave=False)
        return JSONResponse(run.shown(given=request.query_params.get("include_input") == "true"))

    async def cancel(request: Request) -> Response:
        run = await found(request)
        if run.ended:
            raise ApiError(
                400, "FAILED_PRECONDITION", f"the interaction {run.id} is {run.data['status']}; only one in progress can be cancelled"
            )
        await stop(run)
        return JSONResponse(run.shown())

    async def delete(request: Request) -> Response:
        run = await found(request)
        if not run.ended:
            await stop(run)
        await server.run(_forget, server, run)
        return JSONResponse({})

    async def stop(run: Run) -> None:
        if run.task is not None:
            run.task.cancel()
        else:
            await server.run(_wish_end, server, run)
            _follow(server, run)
        await run.wait()

    async def found(request: Request) -> Run:
        return await server.run(_find, server, request.path_params["interaction"], owner_of(request))

    return [
        Route("/interactions", _in_words(create), methods=["POST"]),
        Route("/interactions/{interaction}", _in_words(get), methods=["GET"]),
        Route("/interactions/{interaction}", _in_words(delete), methods=["DELETE"]),
        Route("/interactions/{interaction}/cancel", _in_words(cancel), methods=["POST"]),
    ]


def _begin(server: Server, asked: CreateInteraction, caller: Caller) -> tuple[Run, Plan, list[str]]:
    """A run, the plan of its answer, and fields without effect; blocks. Raises ApiError."""
    if asked.agent:
        raise invalid("agents are not served here; give a model instead of an agent")
    if not asked.model:
        raise invalid("model is missing; GET models lists what is served")
    if asked.background and not asked.store:
        raise invalid("an interaction in the background must be stored; leave store away or set it to true")
    if asked.background:
        store_of(server)
    served, given = server.find(asked.model), read_input(asked.input)
    before, unknown = read_steps([*_history(server, asked.previous_interaction_id, caller.owner), *given], "input")
    request, ignored = generate_request(asked, before)
    plan = prepare(server, served, request, caller)
    now = rfc3339(time.time())
    data: Json = {"model": asked.model, "status": RUNNING, "created": now, "updated": now}
    if asked.previous_interaction_id:
        data["previous_interaction_id"] = asked.previous_interaction_id
    return Run(new_id(32), caller.owner, data, given), plan, [*unknown, *ignored, *plan.ignored]


def _history(server: Server, name: str, owner: str) -> list[Json]:
    """The steps of an interaction and of all before it; blocks. Raises ApiError 404, and 400 for one that is still being written."""
    turns: list[list[Json]] = []
    while name:
        run = _find(server, name, owner)
        if not run.ended:
            raise ApiError(400, "FAILED_PRECONDITION", f"the interaction {name} is still in progress; wait for its end or cancel it")
        turns.append(run.given + run.steps)
        if len(turns) > MOST_TURNS:
            raise invalid(f"the conversation has more than {MOST_TURNS} turns")
        name = run.data.get("previous_interaction_id", "")
    return [step for turn in reversed(turns) for step in turn]


def _find(server: Server, name: str, owner: str) -> Run:
    """Blocks. Raises ApiError 404."""
    run = _running.get(server, {}).get(name)
    if run is None:
        record = store_of(server).records.get("interaction", name)
        if record is not None:
            run = Run(name, record.owner, record.data["data"], record.data["given"], record.data["steps"])
            if not run.ended and not store_of(server).leases.taken(record):  # of a server that is no more
                run.data["status"] = "failed"
                run.fail(ApiError(503, "ABORTED", "the server ended before the answer was complete"))
    if run is None or run.owner != owner:
        raise not_found(f"there is no interaction {name:.80}; it may have been deleted, or not stored")
    return run


async def _finish(server: Server, runs: dict[str, Run], run: Run, plan: Plan, keep: bool) -> None:
    """Write the answer and store it, before anybody hears of its end."""
    status = await run.write(server, plan)
    try:
        if keep:
            await to_the_end(server.run(_store, server, run, status))  # or it would come back after it was deleted
    except Exception as error:
        run.error, status = api_error(error), "failed"
        run.fail(run.error)
    finally:
        if run.watch is not None:
            run.watch.cancel()
        run.end(status, rfc3339(time.time()))
        runs.pop(run.id, None)


async def _watch(server: Server, run: Run) -> None:
    """While a run is written, tell the other servers of the store so, and listen whether one of them wants it to end."""
    while True:
        try:
            if await server.run(_renew, server, run):
                assert run.task is not None
                run.task.cancel()
        except ApiError as error:  # the database does not answer now
            log.warning("the interaction %s is not renewed: %s", run.id, error)
        await asyncio.sleep(WATCH_SECONDS)


def _renew(server: Server, run: Run) -> bool:
    """Keep the lease of a run; whether it shall end. Blocks."""
    store = store_of(server)
    record = store.records.get("interaction", run.id)
    if record is None:
        return True
    store.leases.take([record])
    return bool(record.data.get("unwanted"))


def _wish_end(server: Server, run: Run) -> None:
    store = store_of(server)
    record = store.records.get("interaction", run.id)
    if record is not None:
        store.records.update(record, {"unwanted": True})


def _follow(server: Server, run: Run) -> None:
    """Have the events of a run that another server writes: when it ends, they come all at once."""

    async def follow() -> None:
        while not run.ended:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                now = await server.run(_find, server, run.id, run.owner)
            except ApiError as error:
                if error.code == 503:
                    continue
                run.fail(error)
                run.end("failed", rfc3339(time.time()))
                return
            run.steps = now.steps
            if now.ended:
                run.data |= now.data
                run.end(now.data["status"], now.data["updated"])

    if run.task is None and not run.ended:
        run.watch = asyncio.create_task(follow())


def _store(server: Server, run: Run, status: str) -> None:
    """Make or renew the record of a run; blocks. Raises ApiError 429 if its owner has no room left for it: it need not be stored."""
    store = store_of(server)
    content = {"data": run.data | {"status": status, "updated": rfc3339(time.time())}, "given": run.given, "steps": run.steps}
    size = len(json.dumps(content))
    with store.records.transaction():
        found = store.records.get("interaction", run.id)
        files.check_room(store, server.settings, run.owner, size - (found.size if found else 0))
        if found is None:
            found = store.records.add("interaction", run.id, content, run.owner, expires=store.clock() + LIFETIME, size=size)
            if status == RUNNING:
                store.leases.take([found])
        else:
            store.records.update(found, content, size=size)


def _forget(server: Server, run: Run) -> None:
    store = store_of(server)
    record = store.records.get("interaction", run.id)
    if record is not None:
        store.delete(record)


def _events(run: Run, after: str, leave: bool) -> Response:
    """A run as an event stream. leave: if the client goes away, nobody waits for the answer any more."""
    arriving = run.events(after)

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for event in arriving:
                yield f"event: {event['event_type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
            yield b"event: done\ndata: [DONE]\n\n"
        finally:
            if leave and run.task is not None:
                run.task.cancel()

    return StreamingResponse(lines(), media_type="text/event-stream")


def _in_words(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Errors as interactions have them: their code is a word."""

    @functools.wraps(handler)
    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:
            found = api_error(error)
            shown = {"error": {"code": found.status.lower(), "message": found.message}}
            return JSONResponse(shown, found.code, headers=found.headers)

    return handle
