"""Cached contents: the beginning of many prompts, kept by name for a while, so that its tokens are read once.

The record holds the request itself and the bytes of its files, so it outlives a restart and the files; the pages that the engine holds
for it are taken again when they are first needed. generateContent lays a request over its cached beginning with `unfold`.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pollux.generate.requests import Overloaded
from pollux.serve import files
from pollux.serve.errors import ApiError, invalid
from pollux.serve.listing import owner_of, page, store_of
from pollux.serve.prepare import Caller, prepare
from pollux.serve.records import Record
from pollux.serve.server import Served, Server
from pollux.serve.store import Store, new_id
from pollux.serve.times import rfc3339
from pollux.serve.wire.body import read
from pollux.serve.wire.content import Content, Part, Tool, ToolConfig
from pollux.serve.wire.generate import GenerateContentRequest
from pollux.serve.wire.message import parse, to_json, wire
from pollux.tokens.sequence import Sequence, Soft

log = logging.getLogger("pollux.serve")

USUAL_SECONDS = 3600.0
MAX_SECONDS = 10 * 365 * 24 * 3600.0
_NAME = re.compile(r"(?:cachedContents/)?([A-Za-z0-9-]+)")


@dataclass(frozen=True)
class CachedContent:
    """What a client sends; the answer is `described`."""

    model: str = ""
    display_name: str = ""
    contents: tuple[Content, ...] = ()
    system_instruction: Content | None = None
    tools: tuple[Tool, ...] = ()
    tool_config: ToolConfig | None = None
    ttl: datetime.timedelta | None = wire(oneof="expiration")
    expire_time: datetime.datetime | None = wire(oneof="expiration")


def routes(server: Server) -> list[BaseRoute]:
    async def create(request: Request) -> JSONResponse:
        asked = await read(CachedContent, request)
        return JSONResponse(described(await server.run(_create, server, asked, owner_of(request))))

    async def get_all(request: Request) -> JSONResponse:
        records, following = await page(server, request, "cache", usual=50, most=1000)
        return JSONResponse(({"cachedContents": [described(one) for one in records]} if records else {}) | following)

    async def get(request: Request) -> JSONResponse:
        return JSONResponse(described(await _asked(request)))

    async def update(request: Request) -> JSONResponse:
        changes, record = await read(CachedContent, request), await _asked(request)
        if changes.ttl is None and changes.expire_time is None:
            raise invalid("only the expiration of cached content can be changed; give ttl or expireTime")
        store = store_of(server)
        updated = await server.run(store.records.update, record, {}, _expires(store, changes))
        if updated is None:
            raise _missing(record.name)
        return JSONResponse(described(updated))

    async def delete(request: Request) -> JSONResponse:
        record = await _asked(request)
        await server.run(store_of(server).delete, record)
        await server.run(release_ended, server)
        return JSONResponse({})

    async def _asked(request: Request) -> Record:
        return await server.run(_find, store_of(server), request.path_params["name"], owner_of(request))

    return [
        Route("/cachedContents", create, methods=["POST"]),
        Route("/cachedContents", get_all, methods=["GET"]),
        Route("/cachedContents/{name}", get, methods=["GET"]),
        Route("/cachedContents/{name}", update, methods=["PATCH"]),
        Route("/cachedContents/{name}", delete, methods=["DELETE"]),
    ]


def unfold(server: Server, served: Served, asked: GenerateContentRequest, owner: str = "") -> GenerateContentRequest:
    """The request with its cached beginning before it, whose pages the engine then holds; blocks.

    Raises ApiError: 403 if there is no such content or its time is over, 400 if it is another model's or the request sets what the
    cached content sets.
    """
    if not asked.cached_content:
        return asked
    if asked.system_instruction or asked.tools or asked.tool_config:
        raise invalid("CachedContent can not be used with GenerateContent request setting system_instruction, tools or tool_config.")
    store = store_of(server)
    record = _find(store, asked.cached_content, owner)
    if server.find(record.data["model"]) is not served:
        raise invalid(f"cachedContents/{record.name} is of {record.data['model']} and cannot be used with models/{served.name}")
    cached = _kept(store, record)
    if record.name not in server.contexts:
        try:
            _keep_warm(server, record.name, _hold(server, served, cached, owner)[0])
        except Overloaded as error:  # the request itself may still find room
            log.warning("cachedContents/%s is not held: %s", record.name, error)
    return dataclasses.replace(
        asked,
        contents=cached.contents + asked.contents,
        system_instruction=cached.system_instruction,
        tools=cached.tools,
        tool_config=cached.tool_config,
        cached_content="",
    )


def _keep_warm(server: Server, name: str, context: Any) -> None:
    """Note a context, unless another request was quicker."""
    if server.contexts.setdefault(name, context) is not context:
        context.release()


def release_ended(server: Server) -> None:
    """Give back the pages of cached contents that were deleted or have expired; blocks."""
    for name in list(server.contexts):
        if store_of(server).records.get("cache", name) is None:
            context = server.contexts.pop(name, None)
            if context is not None:
                context.release()


def described(record: Record) -> dict[str, Any]:
    data = record.data
    assert record.expires is not None
    return {
        "name": f"cachedContents/{record.name}",
        "model": data["model"],
        **({"displayName": data["displayName"]} if data["displayName"] else {}),
        "createTime": rfc3339(record.created),
        "updateTime": rfc3339(record.updated),
        "expireTime": rfc3339(record.expires),
        "usageMetadata": {"totalTokenCount": data["tokens"]},
    }


def _create(server: Server, asked: CachedContent, owner: str) -> Record:
    store, served = store_of(server), server.find(asked.model)
    if not asked.contents and asked.system_instruction is None:
        raise invalid("there is nothing to cache; give contents or systemInstruction")
    expires = _expires(store, asked)
    context, tokens = _hold(server, served, asked, owner)
    name = new_id(40)
    data = {"model": "models/" + asked.model.removeprefix("models/"), "displayName": asked.display_name, "tokens": tokens}
    try:
        with store.records.transaction():
            record = store.records.add("cache", name, data, owner, expires)
            kept = dataclasses.replace(
                asked,
                contents=tuple(_pinned(store, content, record) for content in asked.contents),
                system_instruction=asked.system_instruction and _pinned(store, asked.system_instruction, record),
            )
            body = to_json(kept)
            size = len(json.dumps(body))
            files.check_room(store, server.settings, owner, size)
            store.records.add("cached", name, body, owner, parent=record, size=size)
    except BaseException:
        context.release()
        raise
    _keep_warm(server, name, context)
    return record


def _hold(server: Server, served: Served, asked: CachedContent, owner: str) -> tuple[Any, int]:
    """The engine's Context of the beginning, and how many tokens it has.

    What a user's turn behind it adds is found by writing that turn alone too, and cut off.
    """
    turn = Content((Part(text="?"),), "user")
    beginning = GenerateContentRequest(asked.model, asked.contents, asked.system_instruction, asked.tools, asked.tool_config)
    whole = prepare(
        server, served, dataclasses.replace(beginning, contents=(*asked.contents, turn)), Caller(owner), look_up=False
    ).request.prompt
    alone = prepare(server, served, GenerateContentRequest(contents=(turn,)), Caller(owner)).request.prompt
    most = min(len(whole), len(alone))
    differ = np.flatnonzero(whole.ids[::-1][:most] != alone.ids[::-1][:most])
    size = len(whole) - int(differ[0] if differ.size else most)
    return served.engine.hold(_first(whole, size)), size


def _first(prompt: Sequence, size: int) -> Sequence:
    """The first tokens of a prompt."""
    arrays = {name: getattr(prompt, name)[:size] for name in ("ids", "target", "position", "branch", "group", "modality", "pool")}
    soft = {}
    for name, one in prompt.soft.items():
        number = int(np.searchsorted(one.index, size))
        if number:
            soft[name] = Soft(one.features[:number], one.index[:number], one.coord[:number])
    return Sequence(**arrays, soft=soft)


def _pinned(store: Store, content: Content, parent: Record) -> Content:
    """The content with its files kept for as long as the parent lives."""
    parts = []
    for part in content.parts:
        uri = files.pin(store, part.file_data.file_uri, parent.owner, parent) if part.file_data else None
        if part.file_data and uri is not None:
            part = dataclasses.replace(part, file_data=dataclasses.replace(part.file_data, file_uri=uri))
        parts.append(part)
    return dataclasses.replace(content, parts=tuple(parts))


def _kept(store: Store, record: Record) -> CachedContent:
    kept = store.records.get("cached", record.name)
    if kept is None:
        raise _missing(record.name)
    return parse(CachedContent, kept.data)[0]


def _expires(store: Store, asked: CachedContent) -> float:
    """When cached content ends, in seconds since 1970. Raises ApiError 400 for a time that is not in the future."""
    now = store.clock()
    seconds = USUAL_SECONDS if asked.ttl is None else asked.ttl.total_seconds()
    expires = now + seconds if asked.expire_time is None else asked.expire_time.timestamp()
    if not now < expires <= now + MAX_SECONDS:
        raise invalid(f"{'ttl' if asked.expire_time is None else 'expireTime'} must lie in the future, and at most ten years ahead")
    return expires


def _find(store: Store, name: str, owner: str) -> Record:
    match = _NAME.fullmatch(name)
    if match is None:
        raise invalid(f"{name!r:.200} is not the name of cached content; it must be like cachedContents/abc")
    record = store.records.get("cache", match[1])
    if record is None or record.owner != owner:
        raise _missing(match[1])
    return record


def _missing(name: str) -> ApiError:
    return ApiError(403, "PERMISSION_DENIED", f"CachedContent not found (or permission denied): cachedContents/{name}")
