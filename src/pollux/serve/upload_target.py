"""What an upload may become: a file here, other things elsewhere. uploads.py asks its target at the beginning and at the end."""

from __future__ import annotations

import concurrent.futures
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request

from pollux.serve import files
from pollux.serve.errors import ApiError, invalid
from pollux.serve.listing import store_of
from pollux.serve.records import Record, Taken
from pollux.serve.server import Server
from pollux.serve.wire.body import decode
from pollux.serve.wire.message import parse, wire


@dataclass(frozen=True)
class FileFields:
    """What a client may say of a file."""

    name: str = ""
    display_name: str = ""
    mime_type: str = ""
    size_bytes: int | None = wire(bits=64)


@dataclass(frozen=True)
class CreateFileRequest:
    file: FileFields = FileFields()


class Target(Protocol):
    """What uploads become. All methods block; an upload is its record, whose data hold what `begin` gave."""

    def begin(self, body: bytes, request: Request) -> tuple[FileFields, dict[str, Any], list[str]]:
        """What the metadata that come before the bytes say, what else to remember, and the fields that are ignored. Raises ApiError."""

    def make(self, upload: Record, mime_type: str, digest: bytes) -> Record:
        """The record of what a complete upload becomes, in a transaction with it. digest: SHA-256. Raises ApiError."""

    def find(self, upload: Record) -> Record:
        """That record as it is now. Raises ApiError."""

    def made(self, record: Record) -> concurrent.futures.Future[None] | None:
        """The record is there: do what is to follow. A future is waited for, for some seconds."""

    def described(self, record: Record, request: Request) -> dict[str, Any]:
        """The answer to whoever finished the upload."""


class Files:
    """Uploads that become files."""

    def __init__(self, server: Server):
        self.server = server

    def begin(self, body: bytes, request: Request) -> tuple[FileFields, dict[str, Any], list[str]]:
        message, ignored = parse(CreateFileRequest, decode(body))
        name = message.file.name.removeprefix("files/")
        if name and not files.NAME.fullmatch(name):
            raise invalid(
                f"file.name is {message.file.name!r:.80} but must be files/ and up to 40 lower-case letters, digits and dashes within"
            )
        if name and store_of(self.server).records.get("file", name):
            raise _taken(name)
        return message.file, {"name": name}, ignored

    def make(self, upload: Record, mime_type: str, digest: bytes) -> Record:
        data = upload.data
        name, title, size = data["name"], data["displayName"], data["received"]
        try:
            return files.add(self.server, upload.name, name, title, mime_type, digest, size, upload.owner)
        except Taken as error:
            raise _taken(name) from error

    def find(self, upload: Record) -> Record:
        return files.find(store_of(self.server), upload.data["became"], upload.owner)

    def made(self, record: Record) -> concurrent.futures.Future[None] | None:
        return files.check(store_of(self.server), record) if record.data["state"] == "PROCESSING" else None

    def described(self, record: Record, request: Request) -> dict[str, Any]:
        return {"file": files.described(record, request)}


def _taken(name: str) -> ApiError:
    return ApiError(409, "ALREADY_EXISTS", f"there is a file files/{name} already; delete it first, or choose another name")
