"""The routes of the documents of a store: importing, finding, listing and deleting them; and the operations that show how far an import is.

A document is PENDING until imports.py has read it. Its operation is another view of it, so it goes on for as long as the document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pollux.serve import files
from pollux.serve.errors import ApiError, invalid
from pollux.serve.file_search import imports, stores
from pollux.serve.file_search.checks import check_metadata, chunk_sizes
from pollux.serve.listing import owner_of, page_size, store_of
from pollux.serve.records import Record
from pollux.serve.server import Server
from pollux.serve.store import Store
from pollux.serve.times import rfc3339
from pollux.serve.wire.body import read
from pollux.serve.wire.file_search import ImportFileRequest
from pollux.serve.wire.message import to_json

_PAGE = 1000  # records read at a time
_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main."
_INVALID = 3  # google.rpc.Code


def routes(server: Server) -> list[BaseRoute]:
    async def import_file(request: Request) -> JSONResponse:
        asked = await read(ImportFileRequest, request)
        record = await server.run(_import, server, request.path_params["store"], asked, owner_of(request))
        return JSONResponse(operation(record, upload=False))

    async def get_all(request: Request) -> JSONResponse:
        size, token = page_size(request, usual=10, most=20), request.query_params.get("pageToken", "")

        def some() -> list[Record]:
            store = store_of(server)
            record = stores.find(store, request.path_params["store"], owner_of(request))
            return store.records.children(record, "document", f"{record.name}/{token}" if token else "", size + 1)

        found = await server.run(some)
        shown = {"documents": [described(one) for one in found[:size]]} if found else {}
        return JSONResponse(shown | ({"nextPageToken": found[size - 1].name.partition("/")[2]} if len(found) > size else {}))

    async def get(request: Request) -> JSONResponse:
        return JSONResponse(described(await server.run(_asked, request)))

    async def delete(request: Request) -> JSONResponse:
        record = await server.run(_asked, request)
        if record.data["state"] == "STATE_ACTIVE" and not forced(request):
            message = f"Cannot delete the non-empty Document {resource(record)}; give force to delete its chunks too"
            raise ApiError(400, "FAILED_PRECONDITION", message)
        await server.run(imports.delete_document, store_of(server), record)
        return JSONResponse({})

    async def get_operation(request: Request) -> JSONResponse:
        return JSONResponse(operation(await server.run(_asked, request), upload="/upload/" in request.url.path))

    def _asked(request: Request) -> Record:
        return find(store_of(server), request.path_params["store"], request.path_params["document"], owner_of(request))

    return [
        Route("/fileSearchStores/{store}:importFile", import_file, methods=["POST"]),
        Route("/fileSearchStores/{store}/documents", get_all, methods=["GET"]),
        Route("/fileSearchStores/{store}/documents/{document}", get, methods=["GET"]),
        Route("/fileSearchStores/{store}/documents/{document}", delete, methods=["DELETE"]),
        Route("/fileSearchStores/{store}/operations/{document}", get_operation, methods=["GET"]),
        Route("/fileSearchStores/{store}/upload/operations/{document}", get_operation, methods=["GET"]),
    ]


def forced(request: Request) -> bool:
    """Whether the query says force. Raises ApiError 400 for what is neither true nor false."""
    given = request.query_params.get("force", "false").lower()
    if given not in ("true", "false", "1", "0"):
        raise invalid(f"force is {given!r:.40} but must be true or false")
    return given in ("true", "1")


def all_of(store: Store, parent: Record) -> Iterator[Record]:
    """The documents of a store; blocks with each step."""
    after = ""
    while some := store.records.children(parent, "document", after, _PAGE):
        yield from some
        after = some[-1].name


def find(store: Store, store_name: str, name: str, owner: str) -> Record:
    """The record of a document; blocks. Raises ApiError 400 and 403 as `stores.find` does, 404 if the store has no such document."""
    parent = stores.find(store, store_name, owner)
    if not stores.NAME.fullmatch(name):
        raise invalid(f"documents/{name:.80} is no name of a document: it has up to 40 lower-case letters, digits and dashes within")
    record = store.records.get("document", f"{parent.name}/{name}")
    if record is None:
        raise ApiError(404, "NOT_FOUND", f"Documents does not exist: fileSearchStores/{store_name}/documents/{name}")
    return record


def add(
    store: Store,
    parent: Record,
    display_name: str,
    mime_type: str,
    metadata: Sequence[dict[str, Any]],
    chunking: Sequence[int],
    media: str,
    size: int,
) -> Record:
    """The record of a new document whose bytes the store keeps as `media`; `imports.begin` is to follow. Blocks.

    metadata: CustomMetadata as JSON; chunking: as `checks.chunk_sizes` gives it.
    """
    data = {
        "displayName": display_name,
        "mimeType": mime_type,
        "customMetadata": list(metadata),
        "chunking": list(chunking),
        "state": "STATE_PENDING",
        "error": "",
    }
    name = f"{parent.name}/{stores.new_name(display_name)}"
    with store.records.transaction():
        store.records.update(parent, {})  # its time
        return store.records.add("document", name, data, parent.owner, parent=parent, media=media, size=size)


def resource(record: Record) -> str:
    """The name of a document in the API."""
    return "fileSearchStores/{}/documents/{}".format(*record.name.split("/"))


def described(record: Record) -> dict[str, Any]:
    """The document as the API shows it."""
    data = record.data
    return {
        "name": resource(record),
        **({"displayName": data["displayName"]} if data["displayName"] else {}),
        **({"customMetadata": data["customMetadata"]} if data["customMetadata"] else {}),
        "createTime": rfc3339(record.created),
        "updateTime": rfc3339(record.updated),
        "state": data["state"],
        "sizeBytes": str(record.size),
        "mimeType": data["mimeType"],
    }


def operation(record: Record, upload: bool) -> dict[str, Any]:
    """The import of a document, as a long-running operation. upload: it came with the request, not from a file."""
    store_name, name = record.name.split("/")
    shown: dict[str, Any] = {"name": f"fileSearchStores/{store_name}{'/upload' if upload else ''}/operations/{name}"}
    state = record.data["state"]
    if state == "STATE_PENDING":
        return shown
    shown["done"] = True
    if state == "STATE_FAILED":
        return shown | {"error": {"code": _INVALID, "message": record.data["error"]}}
    kind = "UploadToFileSearchStoreResponse" if upload else "ImportFileResponse"
    return shown | {
        "response": {"@type": _TYPE + kind, "parent": f"fileSearchStores/{store_name}", "documentName": resource(record)},
    }


def _import(server: Server, store_name: str, asked: ImportFileRequest, owner: str) -> Record:
    store = store_of(server)
    chunking = chunk_sizes(asked.chunking_config)
    check_metadata(asked.custom_metadata)
    name = asked.file_name.removeprefix("files/")
    if not files.NAME.fullmatch(name):
        raise invalid(f"fileName is {asked.file_name!r:.80} but must be the name of an uploaded file, like files/abc")
    with store.records.transaction():
        parent = stores.find(store, store_name, owner)
        file = files.find(store, name, owner)
        files.check_room(store, server.settings, owner, file.size)
        assert file.media is not None
        title, metadata = file.data["displayName"] or file.name, [to_json(one) for one in asked.custom_metadata]
        record = add(store, parent, title, file.data["mimeType"], metadata, chunking, file.media, file.size)
    imports.begin(server, record)
    return record
