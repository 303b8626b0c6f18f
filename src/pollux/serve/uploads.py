"""Uploads of files: resumable ones in chunks, which survive a broken connection and a killed server, and whole ones in one request.

An upload is a record; the bytes it has acknowledged are on disk. Its unguessable id is the only authority that chunks carry, for clients
send no key with them. A finished upload becomes what its target makes of it, such as a file (files.py), and is remembered for a while, so
that a client that missed the answer may ask again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import mimetypes
import re
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pollux import media
from pollux.serve import files
from pollux.serve.errors import ApiError, disk_full, invalid
from pollux.serve.listing import owner_of, store_of
from pollux.serve.records import Record
from pollux.serve.server import VERSIONS, Server
from pollux.serve.store import Store, new_id
from pollux.serve.upload_target import Files, Target
from pollux.serve.wire.body import read_body

CHECK_SECONDS = 5.0  # that the answer to an upload waits for the check of its medium
_PIECE = 1 << 20  # bytes written at a time
_UNKNOWN_TYPES = ("", "none", "application/octet-stream")
_MIME_TYPE = re.compile(r"(image|audio|video|text|application)/[a-z0-9][a-z0-9!#$&^_.+-]*|jsonl")  # so requests of batches are called
_BOUNDARY = re.compile(r'boundary="?([^";]+)"?', re.IGNORECASE)
_MAX_DISPLAY_NAME = 512


def root_routes(server: Server) -> list[BaseRoute]:
    uploads = Uploads(server, Files(server))
    return [Route(f"/upload/{version}/files", uploads, methods=["POST", "PUT"]) for version in VERSIONS]


class Uploads:
    """The handler of the uploads of a server that become the same, an ASGI application."""

    def __init__(self, server: Server, target: Target):
        self.server, self.target = server, target
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()  # by upload
        self._turns: dict[str, object] = {}  # the request that may write to an upload

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> JSONResponse:
        if "upload_id" in request.query_params:
            try:
                return await self._go_on(request, request.query_params["upload_id"])
            except ApiError as error:
                if error.code < 500:  # without a status the official client would send the chunk again
                    error.headers.setdefault("X-Goog-Upload-Status", "final")
                raise
        protocol = request.headers.get("x-goog-upload-protocol") or request.query_params.get("uploadType", "")
        if protocol == "resumable":
            return await self._start(request)
        if protocol in ("raw", "media"):
            size = _length(request, "content-length")
            record = await self._begin(request, b"", request.headers.get("content-type", ""), size, at_once=True)
            return await self._at_once(request, record, request.stream())
        if protocol == "multipart":
            return await self._related(request)
        raise invalid("the header X-Goog-Upload-Protocol must be resumable, multipart or raw")

    async def _start(self, request: Request) -> JSONResponse:
        if request.headers.get("x-goog-upload-command", "start").strip() != "start":
            raise invalid("an upload begins with X-Goog-Upload-Command: start; to go on with one, send to its X-Goog-Upload-URL")
        body = await read_body(request, self.server.settings.max_body)
        size = _length(request, "x-goog-upload-header-content-length")
        mime_type = request.headers.get("x-goog-upload-header-content-type", "")
        record = await self._begin(request, body, mime_type, size)
        url = f"{str(request.base_url).rstrip('/')}{request.url.path}?upload_id={record.name}&upload_protocol=resumable"
        return JSONResponse({}, headers={"X-Goog-Upload-URL": url, "X-Goog-Upload-Control-URL": url, **_status("active", 0)})

    async def _related(self, request: Request) -> JSONResponse:
        """multipart/related: the metadata as JSON, then the file (RFC 2387)."""
        found = _BOUNDARY.search(request.headers.get("content-type", ""))
        if found is None:
            raise invalid('an upload of type multipart needs the header Content-Type: multipart/related; boundary="..."')
        body = await read_body(request, self.server.settings.max_body)
        parts = (b"\r\n" + body).split(b"\r\n--" + found[1].encode("latin-1"))
        if len(parts) != 4 or not parts[3].startswith(b"--"):
            raise invalid("the body must have two parts, the metadata as JSON and the file, and the boundary with two dashes at its end")
        mime_type, data = _part(parts[2])
        record = await self._begin(request, _part(parts[1])[1], mime_type, len(data), at_once=True)
        return await self._at_once(request, record, _whole(data))

    async def _at_once(self, request: Request, record: Record, body: AsyncIterator[bytes]) -> JSONResponse:
        try:
            await self._receive(record, 0, body)
            return JSONResponse(await self._finish(request, record))
        except BaseException:
            await self._forget(record)
            raise

    async def _begin(self, request: Request, metadata: bytes, mime_type: str, size: int | None, at_once: bool = False) -> Record:
        """The record of a new upload. at_once: nobody can go on with it later.

        Raises ApiError for metadata that the target refuses, and for more than may be stored.
        """
        store, settings, owner = store_of(self.server), self.server.settings, owner_of(request)
        fields, remembered, ignored = await self.server.run(self.target.begin, metadata, request)
        request.state.ignored += ignored
        size = fields.size_bytes if size is None else size
        if len(fields.display_name) > _MAX_DISPLAY_NAME:
            raise invalid(f"file.display_name has {len(fields.display_name)} characters, more than the limit of {_MAX_DISPLAY_NAME}")
        if size is not None and not 0 < size <= settings.max_file:
            raise invalid(f"the file has {size} bytes, but must have 1 to {settings.max_file}")
        mime_type = mime_type.partition(";")[0].strip().lower()
        if mime_type in _UNKNOWN_TYPES:
            guess = mimetypes.guess_type(request.headers.get("x-goog-upload-file-name", ""))[0]
            mime_type = fields.mime_type.lower() or guess or ""
        if mime_type not in _UNKNOWN_TYPES and not _MIME_TYPE.fullmatch(mime_type):
            raise invalid(f"Unsupported MIME type: {mime_type:.80}")
        data = {"displayName": fields.display_name, "mimeType": mime_type, "size": size, "received": 0, "became": None, **remembered}
        data["path"] = request.url.path
        if at_once:
            data["atOnce"] = True

        def add() -> Record:
            with store.records.transaction():
                files.check_room(store, settings, owner, size or 0)
                if (size or 1) > store.room():
                    raise disk_full()
                expires = store.clock() + settings.file_lifetime
                record = store.records.add("upload", new_id(48), data, owner, expires)
            store.sync(record.name)
            return record

        return await self.server.run(add)

    async def _go_on(self, request: Request, name: str) -> JSONResponse:
        store = store_of(self.server)
        record = await self.server.run(_living, store, name)
        if record.data["path"] != request.url.path:
            raise _gone()
        commands = {command.strip() for command in request.headers.get("x-goog-upload-command", "").lower().split(",")}
        if commands - {"upload", "finalize", "query", "cancel"}:
            raise invalid("the header X-Goog-Upload-Command must be upload, finalize, both with a comma between, query or cancel")
        if commands == {"query"}:
            return JSONResponse({}, headers=_status("final" if record.data["became"] else "active", record.data["received"]))
        if commands == {"cancel"}:
            await self._forget(record)
            return JSONResponse({}, headers=_status("cancelled"))
        if record.data["became"] is None:
            if "upload" in commands:
                record = await self._receive(record, _length(request, "x-goog-upload-offset") or 0, request.stream())
            if "finalize" not in commands:
                return JSONResponse({}, headers=_status("active", record.data["received"]))
        return JSONResponse(await self._finish(request, record), headers=_status("final", record.data["received"]))

    async def _receive(self, record: Record, offset: int, body: AsyncIterator[bytes]) -> Record:
        """Write a chunk; the record then tells what is on disk. What a client sends again is skipped. If it leaves in the middle, what
        came is kept. Only the latest request of an upload writes: the one before may hang in a connection that is long dead."""
        turn = self._turns[record.name] = object()
        lock = self._locks.setdefault(record.name, asyncio.Lock())
        writer = _Writer(self.server, record.name, lock, lambda: self._turns.get(record.name) is turn)
        try:
            await writer.begin(offset)
            try:
                async for data in body:
                    await writer.add(data)
            except ClientDisconnect as error:
                await writer.end()
                raise ApiError(499, "CANCELLED", "the client left before its chunk was complete") from error
            return await writer.end()
        finally:
            if self._turns.get(record.name) is turn:
                del self._turns[record.name]

    async def _forget(self, record: Record) -> None:
        store = store_of(self.server)
        await self.server.run(store.delete, record)
        await self.server.run(store.discard, record.name)

    async def _finish(self, request: Request, record: Record) -> dict[str, Any]:
        """What a complete upload becomes; of one that was finished before, the same."""
        lock = self._locks.setdefault(record.name, asyncio.Lock())
        async with lock:
            checked = await self.server.run(self._make, record.name)
        if checked is not None:
            await asyncio.wait([asyncio.wrap_future(checked)], timeout=CHECK_SECONDS)
        return await self.server.run(self._answered, record.name, request)

    def _answered(self, name: str, request: Request) -> dict[str, Any]:
        return self.target.described(self.target.find(_living(store_of(self.server), name)), request)

    def _make(self, name: str) -> concurrent.futures.Future[None] | None:
        """Let the target make what the upload becomes, unless that was done before; what to wait for."""
        store, settings = store_of(self.server), self.server.settings
        record = _living(store, name)
        data = record.data
        if data["became"]:
            return None
        if data["received"] == 0 or data["size"] not in (None, data["received"]):
            message = f"the upload has {data['received']} of {data['size'] or 'unknown'} bytes and cannot be finished"
            raise ApiError(400, "INVALID_ARGUMENT", message, headers=_status("active", data["received"]))
        with open(store.part(name), "rb") as part:
            head = part.read(64)
            part.seek(0)
            digest = hashlib.file_digest(part, "sha256").digest()
        mime_type = data["mimeType"] if data["mimeType"] not in _UNKNOWN_TYPES else _sniffed(head)
        store.keep(name)
        try:
            with store.records.transaction():
                store.records.update(record, {}, size=0)
                files.check_room(store, settings, record.owner, data["received"])
                made = self.target.make(record, mime_type, digest)
                if store.records.update(record, {"became": made.name}) is None:
                    raise _gone()
        except BaseException:
            store.abandon(name)
            raise
        store.discard(name)
        return self.target.made(made)


def forget_broken(server: Server) -> None:
    """Take away what the last end of this server left of uploads in one request, of which no client knows the name; blocks."""
    store = store_of(server)
    for record in store.records.all("upload"):
        if record.data.get("atOnce") and record.created < server.started and store.part(record.name).exists():
            store.delete(record)
            store.discard(record.name)


class _Writer:
    """Writes the body of one request behind what an upload has, as long as it is that request's turn.

    lock: held while a piece is written, so that the next request begins behind it.
    """

    def __init__(self, server: Server, name: str, lock: asyncio.Lock, my_turn: Callable[[], bool]):
        self._server, self._store, self._name, self._lock, self._my_turn = server, store_of(server), name, lock, my_turn
        self._waiting = bytearray()

    async def begin(self, offset: int) -> None:
        """Find out what has come. Raises ApiError 400 for an offset behind that."""
        async with self._lock:
            self._record = await self._server.run(_living, self._store, self._name)
        if self._record.data["became"] is not None:
            raise ApiError(409, "ABORTED", "the upload is finished")
        self._end = received = self._record.data["received"]
        if offset > received:
            message = f"the chunk begins at {offset}, but only {received} bytes have come; go on from there"
            raise ApiError(400, "INVALID_ARGUMENT", message, headers=_status("active", received))
        self._skip = received - offset

    async def add(self, data: bytes) -> None:
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._waiting += data[skipped:]
        size = self._record.data["size"]
        limit = self._server.settings.max_file if size is None else size
        if self._end + len(self._waiting) > limit:
            message = f"the upload is larger than the {limit} bytes that were announced or are allowed"
            raise ApiError(400, "INVALID_ARGUMENT", message, headers=_status("active", self._record.data["received"]))
        if len(self._waiting) >= _PIECE:
            await self._write()

    async def end(self) -> Record:
        """Force all to disk and say so in the record."""
        await self._write()
        async with self._lock:
            self._check_turn()
            await self._server.run(self._store.sync, self._name)
            received = {"received": self._end}
            updated = await self._server.run(self._store.records.update, self._record, received, size=self._end)
        if updated is None:
            raise _gone()
        return updated

    async def _write(self) -> None:
        async with self._lock:
            self._check_turn()
            data, self._waiting = self._waiting, bytearray()
            if not data:
                return
            try:
                await self._server.run(self._store.write, self._name, self._end, data)
            except ApiError:  # the disk is full: what was not acknowledged makes room
                await self._server.run(self._store.cut, self._name, self._record.data["received"])
                raise
            self._end += len(data)

    def _check_turn(self) -> None:
        if not self._my_turn():
            raise ApiError(409, "ABORTED", "another request goes on with this upload")


def _living(store: Store, name: str) -> Record:
    """An upload that this server can go on with."""
    record = store.records.get("upload", name)
    if record is None:
        raise _gone()
    if record.data["became"] is None and not store.part(name).exists():
        message = (
            "this upload was begun at another server of the same name, which has its bytes; whatever spreads requests over"
            " the servers must send all of one client to the same"
        )
        raise ApiError(421, "FAILED_PRECONDITION", message, "UPLOAD_ELSEWHERE")
    return record


def _gone() -> ApiError:
    return ApiError(404, "NOT_FOUND", "there is no such upload: it was cancelled, or never begun, or its time is over")


def _status(status: str, received: int | None = None) -> dict[str, str]:
    return {"X-Goog-Upload-Status": status} | ({} if received is None else {"X-Goog-Upload-Size-Received": str(received)})


def _length(request: Request, header: str) -> int | None:
    """A number of bytes in a header. Raises ApiError 400 if it is none."""
    text = request.headers.get(header)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise invalid(f"the header {header} is {text!r:.40} but must be a number of bytes")
    return int(text)


def _part(part: bytes) -> tuple[str, bytes]:
    """Content type and content of one part."""
    head, separator, content = part.partition(b"\r\n\r\n")
    if not separator:
        raise invalid("a part of the body has no empty line between its headers and its content")
    for line in head.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-type":
            return value.strip(), content
    return "", content


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _sniffed(head: bytes) -> str:
    return mimetypes.guess_type("file" + media.suffix_of(head))[0] or "application/octet-stream"
