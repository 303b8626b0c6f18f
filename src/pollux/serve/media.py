"""Media of a request become parts: bytes that came with it, files that were uploaded before, and URLs if the operator lets them be fetched.

The mime type says what a medium is; whether the bytes are that is found out when the prompt is written (of a PDF, the
number of its pages at once). All of this blocks.
"""

from __future__ import annotations

import math
import os
import re

from pollux.content import Audio, Image, Text, Video
from pollux.media import MediaError, pdf_pages
from pollux.serve import files
from pollux.serve.errors import ApiError, invalid
from pollux.serve.fetch import fetch
from pollux.serve.server import Server
from pollux.serve.wire.content import Blob, FileData, VideoMetadata

Medium = Text | Image | Audio | Video

MAX_TEXT = 64 << 20  # bytes of a text file

_OURS = re.compile(r"(^|/v1(alpha|beta)?/)files/[^/?#]+")
_TEXTS = ("json", "xml", "yaml", "javascript", "typescript", "x-python", "x-sh", "sql", "rtf", "toml", "csv", "x-ndjson", "jsonl")
_SOUNDS = ("application/ogg",)
_DOCUMENTS = ("application/pdf", "application/x-pdf")


def from_blob(blob: Blob, where: str, section: VideoMetadata | None = None) -> list[Medium]:
    """The parts of bytes in a request: several pictures for a PDF, one for anything else. Raises ApiError 400."""
    if not blob.data:
        raise invalid(f"{where}.data is empty; give the bytes of the medium in base64")
    return _parts(blob.data, blob.mime_type, where, section)


def from_file(server: Server, data: FileData, where: str, owner: str, section: VideoMetadata | None = None) -> list[Medium]:
    """The parts of an uploaded file or of a URL, as `from_blob`. Raises ApiError 400, and 403 for a file that is not there."""
    if not data.file_uri:
        raise invalid(f"{where}.fileUri is missing; give the uri of an uploaded file")
    if _OURS.search(data.file_uri):
        path, mime_type = files.open_media(server, data.file_uri, owner)
        return _parts(path, mime_type, where, section)
    if not data.file_uri.startswith(("https://", "http://")):
        raise invalid(f"{where}.fileUri is {data.file_uri!r:.200}, but must be the uri of an uploaded file or begin with https://")
    if server.settings.fetch is None:
        raise invalid(f"{where}.fileUri: this server does not fetch files from the web; upload the file first and give its uri")
    fetched = fetch(data.file_uri, server.settings.fetch)
    return _parts(fetched.data, data.mime_type or fetched.mime_type, where, section)


def _parts(source: bytes | os.PathLike, mime_type: str, where: str, section: VideoMetadata | None) -> list[Medium]:
    mime = mime_type.partition(";")[0].strip().lower()
    if mime in _DOCUMENTS:
        try:
            return [Image(page) for page in pdf_pages(source)]
        except MediaError as error:
            raise invalid(f"{where}: {error}") from error
    return [_part(source, mime, where, section)]


def _part(source: bytes | os.PathLike, mime: str, where: str, section: VideoMetadata | None) -> Medium:
    kind, _, name = mime.partition("/")
    if section is not None and kind != "video":
        section = None  # the original, too, reads it for videos only
    if kind == "image":
        return Image(source)
    if kind == "audio" or mime in _SOUNDS:
        return Audio(source)
    if kind == "video":
        return Video(source) if section is None else _section(source, section, where)
    if kind == "text" or (kind == "application" and (name in _TEXTS or name.endswith(("+json", "+xml")))):
        return Text(_decoded(source, where))
    named = f"the mime type {mime!r:.80} is not supported" if mime else "the mime type is missing"
    raise invalid(f"{where}: {named}; supported are image/*, audio/*, video/*, text/* and application/pdf", "UNSUPPORTED_MIME_TYPE")


def _section(source: bytes | os.PathLike, section: VideoMetadata, where: str) -> Video:
    start = section.start_offset.total_seconds() if section.start_offset else 0.0
    end = section.end_offset.total_seconds() if section.end_offset else math.inf
    if not 0 <= start < end:
        raise invalid(f"{where}: videoMetadata must have startOffset of 0 s or more and endOffset after it, not {start:g} s and {end:g} s")
    if section.fps is not None and not 0 < section.fps <= 24:
        raise invalid(f"{where}: videoMetadata.fps is {section.fps:g} but must be above 0 and at most 24")
    return Video(source, start, end, section.fps)


def _decoded(source: bytes | os.PathLike, where: str) -> str:
    data = source if isinstance(source, bytes) else _read_text(source)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise invalid(f"{where} is no text in UTF-8: {error}") from error


def _read_text(path: str | os.PathLike) -> bytes:
    """All of a file that is text. Raises ApiError 400 for one too large to be a prompt."""
    if os.path.getsize(path) > MAX_TEXT:
        raise ApiError(400, "INVALID_ARGUMENT", f"a text of more than {MAX_TEXT} bytes is too large for a prompt")
    with open(path, "rb") as file:
        return file.read()
