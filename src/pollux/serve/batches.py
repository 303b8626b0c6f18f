"""Batches: many requests that are answered when there is time, as operations that clients look after now and then.

A batch is a record, with its requests and results as records that go with it, so that it goes on after a restart; upkeep.py works on it
(batch_work.py). Requests come with the batch or as lines of an uploaded file, and results go back the same way.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pollux.serve import files
from pollux.serve.errors import ApiError, invalid, not_found
from pollux.serve.listing import owner_of, page, store_of
from pollux.serve.records import Record
from pollux.serve.server import Server
from pollux.serve.store import Store, new_id
from pollux.serve.times import rfc3339
from pollux.serve.wire.body import decode, read
from pollux.serve.wire.message import wire

LIFETIME = 48 * 3600.0  # seconds; what is not done by then is given up
UNFINISHED = ("BATCH_STATE_PENDING", "BATCH_STATE_RUNNING")
MAX_PRIORITY = 1 << 31
OPENAI_ENDPOINTS = ("/v1/chat/completions", "/v1/embeddings")
_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main."
_PAGE = 100  # records read at a time
_FILE = re.compile(r"files/[a-z0-9-]+")


@dataclass(frozen=True)
class InlinedRequest:
    """The request is read when its turn comes, so that one mistake does not spoil a batch."""

    request: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class InlinedRequests:
    requests: tuple[InlinedRequest, ...] = ()


@dataclass(frozen=True)
class InputConfig:
    requests: InlinedRequests | None = wire(oneof="source")
    file_name: str = wire(oneof="source", default="")


@dataclass(frozen=True)
class Batch:
    display_name: str = ""
    input_config: InputConfig = InputConfig()
    priority: int = wire(bits=64, default=0)


@dataclass(frozen=True)
class BatchRequest:
    batch: Batch = Batch()


def routes(server: Server) -> list[BaseRoute]:
    def creating(embeds: bool) -> Callable:
        async def create(request: Request) -> JSONResponse:
            asked = (await read(BatchRequest, request)).batch
            record = await server.run(_create, server, request.path_params["model"], asked, embeds, owner_of(request))
            request.app.state.upkeep.changed()
            return JSONResponse(await server.run(described, store_of(server), record))

        return create

    async def get_all(request: Request) -> JSONResponse:
        records, following = await page(server, request, "batch", usual=10, most=100)
        shown = [described(store_of(server), one, results=False) for one in records]
        return JSONResponse(({"operations": shown} if shown else {}) | following)

    async def get(request: Request) -> JSONResponse:
        return JSONResponse(await server.run(described, store_of(server), await _asked(request)))

    async def cancel(request: Request) -> JSONResponse:
        await server.run(end, store_of(server), await _asked(request), "BATCH_STATE_CANCELLED")
        request.app.state.upkeep.changed()
        return JSONResponse({})

    async def delete(request: Request) -> JSONResponse:
        await server.run(store_of(server).delete, await _asked(request))
        request.app.state.upkeep.changed()
        return JSONResponse({})

    async def _asked(request: Request) -> Record:
        name = request.path_params["name"]
        record = await server.run(store_of(server).records.get, "batch", name)
        if record is None or record.owner != owner_of(request):
            raise not_found(f"there is no batch batches/{name:.80}")
        return record

    return [
        Route("/models/{model}:batchGenerateContent", creating(embeds=False), methods=["POST"]),
        Route("/models/{model}:asyncBatchEmbedContent", creating(embeds=True), methods=["POST"]),
        Route("/batches", get_all),
        Route("/batches/{name}:cancel", cancel, methods=["POST"]),
        Route("/batches/{name}", get, methods=["GET"]),
        Route("/batches/{name}", delete, methods=["DELETE"]),
    ]


def unfinished(store: Store) -> list[Record]:
    return [record for record in store.records.all("batch") if record.data["state"] in UNFINISHED]


def begin(store: Store, record: Record) -> None:
    """Note that the work on a batch has begun, unless it has ended meanwhile. Blocks."""
    with store.records.transaction():
        now = store.records.get("batch", record.name)
        if now is not None and now.number == record.number and now.data["state"] == "BATCH_STATE_PENDING":
            store.records.update(now, {"state": "BATCH_STATE_RUNNING"})


def end(store: Store, record: Record, state: str, **changes: Any) -> None:
    """Put a batch that is not finished into its last state; one that is keeps its own. Blocks."""
    with store.records.transaction():
        now = store.records.get("batch", record.name)
        if now is not None and now.number == record.number and now.data["state"] in UNFINISHED:
            store.records.update(now, {"state": state, "ended": store.clock(), **changes})
            store.records.delete_children(now, "batch_item")


def items(store: Store, record: Record) -> Iterator[tuple[int, dict[str, Any]]]:
    """The requests that have no result yet, each with its number: {"request": ..., "metadata" or "key": ...}, or {"error": ...} for a line
    that is none. Blocks with each step."""
    done = {int(name.rpartition("/")[2]) for name in store.records.names(record, "batch_result")}
    if record.data["inline"]:
        after = ""
        while some := store.records.children(record, "batch_item", after, _PAGE):
            for one in some:
                number = int(one.name.rpartition("/")[2])
                if number not in done:
                    yield number, one.data
            after = some[-1].name
        return
    [pinned] = store.records.children(record, "pinned")
    with open(store.path(pinned), "rb") as file:
        for number, line in enumerate(line for line in file if line.strip()):
            if number not in done:
                yield number, _openai_line(line, endpoint) if (endpoint := record.data.get("endpoint")) else _line(line)


def finish(server: Server, record: Record) -> None:
    """Put the results where the client gets them: a file for a file. Blocks."""
    store = store_of(server)
    if record.data["inline"]:
        end(store, record, "BATCH_STATE_SUCCEEDED")
        return
    with files.making(store, record.owner) as upload:
        size, digest = 0, hashlib.sha256()
        for one in _results(store, record):
            line = json.dumps(one, ensure_ascii=False).encode() + b"\n"
            store.write(upload, size, line)
            size += len(line)
            digest.update(line)
        store.sync(upload)
        store.keep(upload)
        with store.records.transaction():
            now = store.records.get("batch", record.name)
            if now is None or now.data["state"] not in UNFINISHED:
                raise ApiError(409, "ABORTED", "the batch was cancelled")
            name = f"results of {record.data['displayName'] or record.name}"
            file = files.add(server, upload, "", name, "application/jsonl", digest.digest(), size, record.owner, source="GENERATED")
            end(store, record, "BATCH_STATE_SUCCEEDED", responses=f"files/{file.name}")
            store.records.delete_children(record, "batch_result")


def described(store: Store, record: Record, results: bool = True) -> dict[str, Any]:
    """The operation. Blocks. results: with those that are not in a file."""
    data = record.data
    kind = "EmbedContentBatch" if data["embeds"] else "GenerateContentBatch"
    done, succeeded, failed = data["state"] not in UNFINISHED, data["succeeded"], data["failed"]
    stats = {"requestCount": data["count"], "successfulRequestCount": succeeded, "failedRequestCount": failed}
    if not done:
        stats["pendingRequestCount"] = data["count"] - succeeded - failed
    metadata = {
        "@type": _TYPE + kind,
        "name": f"batches/{record.name}",
        "model": data["model"],
        **({"displayName": data["displayName"]} if data["displayName"] else {}),
        "state": data["state"],
        "createTime": rfc3339(record.created),
        "updateTime": rfc3339(record.updated),
        **({"endTime": rfc3339(data["ended"])} if data["ended"] else {}),
        "batchStats": {name: str(number) for name, number in stats.items() if number},
        **({"priority": str(data["priority"])} if data["priority"] else {}),
    }
    operation: dict[str, Any] = {"name": f"batches/{record.name}", "metadata": metadata, "done": done}
    if data["state"] == "BATCH_STATE_SUCCEEDED":
        output: dict[str, Any] = {}
        if data["responses"]:
            output = {"responsesFile": data["responses"]}
        elif results:
            output = {"inlinedResponses": {"inlinedResponses": list(_results(store, record))}}
        if output:  # else clients would take the batch of a list for one with a file
            metadata["output"] = output
        operation["response"] = {"@type": f"{_TYPE}{kind}Output", **output}
    elif done:
        code, message = _ERRORS[data["state"]]
        operation["error"] = {"code": code, "message": data["error"] or message}
    return operation


_ERRORS = {  # by google.rpc.Code
    "BATCH_STATE_CANCELLED": (1, "the batch was cancelled"),
    "BATCH_STATE_EXPIRED": (4, "the batch was not finished in time"),
    "BATCH_STATE_FAILED": (13, "the batch failed"),
}


def _create(server: Server, model: str, asked: Batch, embeds: bool, owner: str) -> Record:
    source = asked.input_config
    server.find(model)
    if abs(asked.priority) > MAX_PRIORITY:
        raise invalid(f"batch.priority is {asked.priority} but must be between {-MAX_PRIORITY} and {MAX_PRIORITY}")
    requests = source.requests.requests if source.requests is not None else ()
    if not requests and not source.file_name:
        raise invalid("the batch is empty; give batch.inputConfig.requests.requests or batch.inputConfig.fileName")
    if source.file_name and not _FILE.fullmatch(source.file_name):
        raise invalid(f"batch.inputConfig.fileName is {source.file_name!r:.80} but must be the name of an uploaded file, like files/abc")
    about = {"model": f"models/{model}", "displayName": asked.display_name, "embeds": embeds, "priority": asked.priority}
    return _add(server, about, source.file_name, requests, owner)


def create_for_openai(server: Server, endpoint: str, file_name: str, metadata: dict[str, Any] | None, owner: str) -> Record:
    """A batch of a file whose lines are requests of OpenAI's API. Blocks. Raises ApiError for what cannot be one."""
    if endpoint not in OPENAI_ENDPOINTS:
        raise invalid(f"endpoint is {endpoint!r:.80} but must be one of {', '.join(OPENAI_ENDPOINTS)}")
    if not _FILE.fullmatch(file_name):
        raise invalid(f"input_file_id is {file_name!r:.80} but must be the name of a file uploaded through the Gemini API, like files/abc")
    about = {"model": "", "displayName": "", "embeds": False, "priority": 0}
    return _add(server, about | {"endpoint": endpoint, "input": file_name, "metadata": metadata}, file_name, (), owner)


def _add(server: Server, about: dict[str, Any], file_name: str, requests: Sequence[InlinedRequest], owner: str) -> Record:
    """The record of a new batch of a file's lines, or of these requests. Blocks."""
    store = store_of(server)
    data = about | {
        "inline": not file_name,
        "state": "BATCH_STATE_PENDING",
        "ended": None,
        "error": "",
        "responses": "",
        "count": len(requests),
        "succeeded": 0,
        "failed": 0,
    }
    if file_name:
        data["count"] = _count_lines(server, file_name, owner)
    items = [{"request": one.request} | ({"metadata": one.metadata} if one.metadata is not None else {}) for one in requests]
    sizes = [len(json.dumps(item)) for item in items]
    with store.records.transaction():
        files.check_room(store, server.settings, owner, sum(sizes))
        record = store.records.add("batch", new_id(36), data, owner)
        if file_name:
            files.pin(store, file_name, owner, record)
        for number, (item, size) in enumerate(zip(items, sizes, strict=True)):
            store.records.add("batch_item", item_name(record, number), item, owner, parent=record, size=size)
    return record


def item_name(record: Record, number: int) -> str:
    """Of a request or its result; in the order of the alphabet they are in their own order."""
    return f"{record.name}/{number:09d}"


def _count_lines(server: Server, name: str, owner: str) -> int:
    """How many requests a file has. Raises ApiError 400 for none, and for a line that no request could be as long as."""
    path, _ = files.open_media(server, name, owner)
    limit, number = server.settings.max_body, 0
    with open(path, "rb") as file:
        for i in itertools.count(1):
            line = file.readline(limit + 1)
            if not line:
                break
            if len(line) > limit:
                raise invalid(f"line {i} of {name} is longer than the limit of {limit} bytes for a request")
            number += bool(line.strip())
    if number == 0:
        raise invalid(f"{name} is empty; it must have one request in each line")
    return number


def _line(line: bytes) -> dict[str, Any]:
    """A line of a file of requests: {"key": ..., "request": {...}}."""
    try:
        found = decode(line)
    except ApiError as error:
        return {"error": error.message}
    if not isinstance(found, dict) or not isinstance(found.get("request"), dict):
        return {"error": 'the line must be an object with "request" and, if the answer is to be found by it, "key"'} | (
            {"key": found["key"]} if isinstance(found, dict) and "key" in found else {}
        )
    return {name: found[name] for name in ("key", "request", "metadata") if name in found}


def _openai_line(line: bytes, endpoint: str) -> dict[str, Any]:
    """A line of a file of OpenAI's requests: {"custom_id": ..., "method": "POST", "url": the endpoint, "body": {...}}."""
    try:
        found = decode(line)
    except ApiError as error:
        return {"custom_id": None, "error": error.message}
    if not isinstance(found, dict):
        found = {}
    given = {"custom_id": found.get("custom_id")}
    if not isinstance(found.get("body"), dict):
        return given | {"error": 'the line must be an object with "custom_id", "method", "url" and "body"'}
    if found.get("url") != endpoint:
        return given | {"error": f"url is {found.get('url')!r:.80} but must be the endpoint of the batch, {endpoint}"}
    return given | {"request": found["body"]}


def _results(store: Store, record: Record) -> Iterator[dict[str, Any]]:
    after = ""
    while some := store.records.children(record, "batch_result", after, _PAGE):
        yield from (one.data for one in some)
        after = some[-1].name
