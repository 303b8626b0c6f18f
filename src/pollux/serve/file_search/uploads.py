"""`:uploadToFileSearchStore`: uploads that become documents of a store."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from pollux.serve.file_search import documents, imports, stores
from pollux.serve.file_search.checks import check_display_name, check_metadata, chunk_sizes
from pollux.serve.listing import owner_of, store_of
from pollux.serve.records import Record
from pollux.serve.server import VERSIONS, Server
from pollux.serve.upload_target import FileFields
from pollux.serve.uploads import Uploads
from pollux.serve.wire.body import decode
from pollux.serve.wire.file_search import UploadToFileSearchStoreRequest
from pollux.serve.wire.message import parse, to_json


def root_routes(server: Server) -> list[BaseRoute]:
    uploads, path = Uploads(server, _Documents(server)), "fileSearchStores/{store}:uploadToFileSearchStore"
    return [Route(f"/upload/{version}/{path}", uploads, methods=["POST", "PUT"]) for version in VERSIONS]


class _Documents:
    """The target of such uploads, as upload_target.py describes it."""

    def __init__(self, server: Server):
        self.server = server

    def begin(self, body: bytes, request: Request) -> tuple[FileFields, dict[str, Any], list[str]]:
        asked, ignored = parse(UploadToFileSearchStoreRequest, decode(body))
        parent = stores.find(store_of(self.server), request.path_params["store"], owner_of(request))
        check_display_name(asked.display_name)
        check_metadata(asked.custom_metadata)
        chunking = chunk_sizes(asked.chunking_config)
        title = asked.display_name or request.headers.get("x-goog-upload-file-name", "")
        metadata = [to_json(one) for one in asked.custom_metadata]
        remembered = {"store": parent.name, "customMetadata": metadata, "chunking": chunking}
        return FileFields(display_name=title[:512], mime_type=asked.mime_type), remembered, ignored

    def make(self, upload: Record, mime_type: str, digest: bytes) -> Record:
        store, data = store_of(self.server), upload.data
        parent = stores.find(store, data["store"], upload.owner)
        title, metadata, chunking = data["displayName"], data["customMetadata"], data["chunking"]
        return documents.add(store, parent, title, mime_type, metadata, chunking, upload.name, data["received"])

    def find(self, upload: Record) -> Record:
        store_name, name = upload.data["became"].split("/")
        return documents.find(store_of(self.server), store_name, name, upload.owner)

    def made(self, record: Record) -> None:
        imports.begin(self.server, record)

    def described(self, record: Record, request: Request) -> dict[str, Any]:
        return documents.operation(record, upload=True)
