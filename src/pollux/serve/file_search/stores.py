"""The routes of fileSearchStores: making, finding, listing and deleting them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pollux.serve.errors import ApiError, invalid
from pollux.serve.file_search import documents, imports
from pollux.serve.file_search.checks import check_display_name
from pollux.serve.listing import owner_of, page, store_of
from pollux.serve.records import Record
from pollux.serve.server import Server
from pollux.serve.store import Store, new_id
from pollux.serve.times import rfc3339
from pollux.serve.wire.body import read
from pollux.serve.wire.file_search import FileSearchStore

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_RANDOM = 12  # letters at the end of a name, which make it unique


def routes(server: Server) -> list[BaseRoute]:
    async def create(request: Request) -> JSONResponse:
        asked = await read(FileSearchStore, request)
        record = await server.run(_create, server, asked, owner_of(request))
        return JSONResponse(await server.run(described, store_of(server), record))

    async def get_all(request: Request) -> JSONResponse:
        records, following = await page(server, request, "file_search_store", usual=10, most=20)
        shown = [await server.run(described, store_of(server), record) for record in records]
        return JSONResponse(({"fileSearchStores": shown} if shown else {}) | following)

    async def get(request: Request) -> JSONResponse:
        return JSONResponse(await server.run(lambda: described(store_of(server), _asked(request))))

    async def delete(request: Request) -> JSONResponse:
        await server.run(_delete, store_of(server), await server.run(_asked, request), documents.forced(request))
        return JSONResponse({})

    def _asked(request: Request) -> Record:
        return find(store_of(server), request.path_params["store"], owner_of(request))

    return [
        Route("/fileSearchStores", create, methods=["POST"]),
        Route("/fileSearchStores", get_all, methods=["GET"]),
        *documents.routes(server),
        Route("/fileSearchStores/{store}", get, methods=["GET"]),
        Route("/fileSearchStores/{store}", delete, methods=["DELETE"]),
    ]


def find(store: Store, name: str, owner: str) -> Record:
    """The record of a store, by its name without "fileSearchStores/"; blocks. Raises ApiError 400 for what is no such name, 403 if there is
    none or it belongs to somebody else, which look the same from outside."""
    if not NAME.fullmatch(name):
        raise invalid(f"fileSearchStores/{name:.80} is no name of a store: it has up to 40 lower-case letters, digits and dashes within")
    record = store.records.get("file_search_store", name)
    if record is None or record.owner != owner:
        raise no_store(name)
    return record


def no_store(name: str) -> ApiError:
    message = f"You do not have permission to access the FileSearchStore fileSearchStores/{name} or it may not exist."
    return ApiError(403, "PERMISSION_DENIED", message)


def described(store: Store, record: Record) -> dict[str, Any]:
    """The store as the API shows it. Blocks."""
    states: Counter[str] = Counter()
    size = 0
    for one in documents.all_of(store, record):
        states[one.data["state"]] += 1
        size += one.size
    counts = {"activeDocumentsCount": "STATE_ACTIVE", "pendingDocumentsCount": "STATE_PENDING", "failedDocumentsCount": "STATE_FAILED"}
    return {
        "name": f"fileSearchStores/{record.name}",
        **({"displayName": record.data["displayName"]} if record.data["displayName"] else {}),
        "createTime": rfc3339(record.created),
        "updateTime": rfc3339(record.updated),
        **{field: str(states[state]) for field, state in counts.items() if states[state]},
        **({"sizeBytes": str(size)} if size else {}),
        "embeddingModel": record.data["embeddingModel"],
    }


def new_name(display_name: str) -> str:
    """As the original makes them: what is fit of the display name, and 12 random letters."""
    words = re.sub(r"[^a-z0-9]+", "-", display_name.lower()).strip("-")[: 39 - _RANDOM].strip("-")
    return f"{words}-{new_id(_RANDOM)}" if words else f"{new_id(_RANDOM)}-{new_id(_RANDOM)}"


def _create(server: Server, asked: FileSearchStore, owner: str) -> Record:
    store, most = store_of(server), server.settings.max_file_search_stores
    if store.shared:
        raise ApiError(400, "FAILED_PRECONDITION", "servers that share a database have no file search stores: an index is one server's own")
    check_display_name(asked.display_name)
    served = server.find(asked.embedding_model) if asked.embedding_model else next(iter(server.models.values()))
    data = {"displayName": asked.display_name, "embeddingModel": f"models/{served.name}"}
    with store.records.transaction():
        if len(store.records.newest("file_search_store", owner, most)) >= most:
            raise ApiError(429, "RESOURCE_EXHAUSTED", f"you have {most} file search stores, which is the limit; delete some", "STORES_FULL")
        return store.records.add("file_search_store", new_name(asked.display_name), data, owner)


def _delete(store: Store, record: Record, force: bool) -> None:
    with store.records.transaction():
        if not force and store.records.children(record, "document", most=1):
            message = f"Cannot delete non-empty FileSearchStore fileSearchStores/{record.name}; delete its documents first, or give force"
            raise ApiError(400, "FAILED_PRECONDITION", message)
        store.records.delete(record)
    imports.forget_store(store, record)
