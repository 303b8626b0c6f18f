"""Files that were uploaded, or made here: their metadata, whether they can be read, their bytes, and their end after two days.

uploads.py brings them in; media.py opens them for prompts with `open_media`.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from pollux import media
from pollux.media.container import survey
from pollux.serve.errors import ApiError, invalid
from pollux.serve.listing import owner_of, page, store_of
from pollux.serve.records import Record
from pollux.serve.server import Server, Settings
from pollux.serve.store import Store, new_id
from pollux.serve.times import rfc3339

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_URI = re.compile(r"(?:^|/)files/([a-z0-9-]+)(?=$|[:?#/])")
_SPAN = re.compile(r"([0-9]{0,18})-([0-9]{0,18})")
_RANGE = re.compile(r"bytes=(?:[0-9]{1,18}-[0-9]{0,18}|-[0-9]{1,18})(?:,\s*(?:[0-9]{1,18}-[0-9]{0,18}|-[0-9]{1,18}))*")
MAKING_SECONDS = 48 * 3600.0  # that the bytes of a file that is made here are safe before it has its record
_SOUND_RATE = 16_000  # Hz; any would do, for the sound is only tried


def routes(server: Server) -> list[BaseRoute]:
    async def get_all(request: Request) -> JSONResponse:
        records, following = await page(server, request, "file", usual=10, most=100)
        return JSONResponse(({"files": [described(one, request) for one in records]} if records else {}) | following)

    async def get(request: Request) -> JSONResponse:
        return JSONResponse(described(await _asked(request), request))

    async def delete(request: Request) -> JSONResponse:
        await server.run(store_of(server).delete, await _asked(request))
        return JSONResponse({})

    async def download(request: Request) -> Response:
        record = await _asked(request)
        check_range(request.headers.get("range"), record.size)
        return FileResponse(await server.run(store_of(server).path, record), media_type=record.data["mimeType"])

    async def _asked(request: Request) -> Record:
        return await server.run(find, store_of(server), request.path_params["file"], owner_of(request))

    return [
        Route("/files", get_all),
        Route("/files/{file}:download", download),
        Route("/files/{file}", get, methods=["GET"]),
        Route("/files/{file}", delete, methods=["DELETE"]),
    ]


def check_range(asked: str | None, size: int) -> None:
    """Raises ApiError for a header Range of which no part can be sent: 400 if it is none, 416 if it begins behind the `size` bytes."""
    if asked is None:
        return
    spans = _SPAN.findall(asked) if _RANGE.fullmatch(asked) else []
    if not spans or any(first and last and int(first) > int(last) for first, last in spans):
        raise invalid(f"the header Range is {asked!r:.80} but must be bytes=FIRST-LAST, bytes=FIRST- or bytes=-COUNT")
    if any(int(first) >= size if first else not size or not int(last) for first, last in spans):
        raise ApiError(416, "OUT_OF_RANGE", f"the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"})


def find(store: Store, name: str, owner: str) -> Record:
    """The record of a file. Raises ApiError 403 if there is none, or it belongs to somebody else, which look the same from outside."""
    record = store.records.get("file", name)
    if record is None or record.owner != owner:
        raise ApiError(403, "PERMISSION_DENIED", f"You do not have permission to access the File {name} or it may not exist.")
    return record


def open_media(server: Server, uri: str, owner: str = "") -> tuple[Path, str]:
    """The path and mime type of a file by its name or URI; blocks.

    Raises ApiError: 400 for what is no such URI and for a file that is still being checked or cannot be read, 403 if there is none.
    """
    store = store_of(server)
    match = _URI.search(uri)
    if match is None:
        raise invalid(f"{uri!r:.200} is not the URI of an uploaded file")
    pinned = store.records.get("pinned", match[1])
    record = pinned if pinned is not None and pinned.owner == owner else find(store, match[1], owner)
    if record.data["state"] == "PROCESSING":
        message = f"The File {record.name} is not in an ACTIVE state and usage is not allowed: it is still being checked."
        raise ApiError(400, "FAILED_PRECONDITION", message)
    if record.data["state"] == "FAILED":
        raise ApiError(400, "FAILED_PRECONDITION", f"The File {record.name} cannot be used: {record.data['error']}.")
    return store.path(record), record.data["mimeType"]


def pin(store: Store, uri: str, owner: str, parent: Record) -> str | None:
    """Keep the bytes of a file for as long as the parent lives, whatever becomes of the file. Returns a URI for `open_media`, None if
    `uri` is none of an uploaded file. Raises ApiError 403."""
    match = _URI.search(uri)
    if match is None:
        return None
    with store.records.transaction():
        record = find(store, match[1], owner)
        pinned = store.records.add("pinned", new_id(32), record.data, owner, parent=parent, media=record.media)
    return f"files/{pinned.name}"


def described(record: Record, request: Request) -> dict[str, Any]:
    """The file as the API shows it."""
    data = record.data
    shown: dict[str, Any] = {"name": f"files/{record.name}"}
    if data["displayName"]:
        shown["displayName"] = data["displayName"]
    shown |= {
        "mimeType": data["mimeType"],
        "sizeBytes": str(record.size),
        "createTime": rfc3339(record.created),
        "updateTime": rfc3339(record.updated),
        "sha256Hash": data["sha256Hash"],
        "uri": _uri(record.name, request),
        "state": data["state"],
        "source": data["source"],
    }
    if record.expires is not None:
        shown["expirationTime"] = rfc3339(record.expires)
    if data["source"] == "GENERATED":
        shown["downloadUri"] = download_uri(record.name, request)
    if data.get("videoMetadata"):
        shown["videoMetadata"] = data["videoMetadata"]
    if data.get("error"):
        shown["error"] = {"code": 3, "message": data["error"]}
    return shown


def _uri(name: str, request: Request) -> str:
    """A name rather than an address: clients recognise it only if it begins with https, so it does even where the server speaks plain
    HTTP."""
    return f"https://{request.base_url.netloc}/v1beta/files/{name}"


def download_uri(name: str, request: Request) -> str:
    """Of the bytes of a file that was made here. Clients look for the name in it, as in `uri`."""
    return f"{_uri(name, request)}:download?alt=media"


@contextlib.contextmanager
def making(store: Store, owner: str) -> Iterator[str]:
    """The name of an upload for the bytes of a new file, which nobody sweeps away meanwhile; in the block, to be written, synced, kept, and
    then the medium of a record. Blocks."""
    upload = store.records.add("upload", new_id(48), {"atOnce": True}, owner, store.clock() + MAKING_SECONDS)
    try:
        yield upload.name
    except BaseException:
        store.abandon(upload.name)
        raise
    finally:
        store.delete(upload)
        store.discard(upload.name)


def add(
    server: Server,
    upload: str,
    name: str,
    display_name: str,
    mime_type: str,
    sha256: bytes,
    size: int,
    owner: str,
    source: str = "UPLOADED",
    known: Mapping[str, Any] | None = None,
) -> Record:
    """The record of a file whose bytes the store keeps under the name of an upload. Media are PROCESSING until `check` has seen them.

    name: "" for a new one. known: what `check` would find, of a medium that was made here. Blocks. Raises Taken.
    """
    store = store_of(server)
    data = {
        "displayName": display_name,
        "mimeType": mime_type,
        # As the original does: the digest in hexadecimal, and that in base64.
        "sha256Hash": base64.b64encode(sha256.hex().encode()).decode(),
        "state": "PROCESSING" if _kind(mime_type) and known is None else "ACTIVE",
        "source": source,
        **(known or {}),
    }
    expires = store.clock() + server.settings.file_lifetime
    return store.records.add("file", name or new_id(12), data, owner, expires, media=upload, size=size)


def check_room(store: Store, settings: Settings, owner: str, size: int) -> None:
    """Raises ApiError 429 if an owner may not store that many bytes more."""
    if store.records.used(owner) + size > settings.max_storage:
        message = f"what is kept for you would take more than the limit of {settings.max_storage} bytes; delete files or other things"
        raise ApiError(429, "RESOURCE_EXHAUSTED", message, "STORAGE_FULL")


def check(store: Store, record: Record) -> concurrent.futures.Future[None]:
    """Find out in the background whether a file can be decoded: its state becomes ACTIVE or FAILED."""

    def judge() -> None:
        path = store.path(record)
        try:
            found: dict[str, Any] = {"state": "ACTIVE"} | _tried(path, record.data["mimeType"])
        except media.MediaError as error:
            found = {"state": "FAILED", "error": str(error).replace(str(path), record.name)}
        store.records.update(record, found)

    return store.background(judge)


def check_unfinished(store: Store, seconds: float = 0.0) -> Iterable[concurrent.futures.Future[None]]:
    """Go on with the checks of files that have been waiting for `seconds`, which the end of a server interrupted."""
    before = store.clock() - seconds
    waiting = [record for record in store.records.all("file") if record.data["state"] == "PROCESSING"]
    return [check(store, record) for record in waiting if record.updated <= before]


def _kind(mime_type: str) -> str:
    kind = mime_type.partition("/")[0]
    return "pdf" if mime_type == "application/pdf" else kind if kind in ("image", "audio", "video") else ""


def _tried(path: Path, mime_type: str) -> dict[str, Any]:
    """What is known of a medium after decoding it: a picture or sound as a whole, of a clip all packets, the first frame and the sound,
    of a PDF the list of its pages.

    Raises MediaError.
    """
    kind = _kind(mime_type)
    if kind == "image":
        media.decode_image(path)
    elif kind == "audio":
        media.decode_audio(path, None, _SOUND_RATE)
    elif kind == "pdf":
        media.pdf_pages(path)
    elif kind == "video":
        media.decode_video(path, 0, 1)
        media.decode_video_sound(path, _SOUND_RATE)
        with open(path, "rb") as file:
            times = survey(path.name, file, "video", media.DEFAULT_LIMITS)
        return of_clip(times)
    return {}


def of_clip(times: np.ndarray) -> dict[str, Any]:
    """What is known of a clip whose frames begin at these times, float [F] in seconds."""
    seconds = times[-1] * len(times) / max(len(times) - 1, 1)  # the last frame is shown as long as the others are on average
    return {"videoMetadata": {"videoDuration": f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"}}
