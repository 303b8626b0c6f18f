"""Where media come from: opening paths, URLs and bytes under limits, and one error that names the file.

Files are taken as hostile: sizes are checked before anything is decoded, and whatever goes wrong inside a decoder
becomes a MediaError.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast
from urllib.parse import urlsplit

import fsspec

Kind = Literal["image", "audio", "video"]
File = bytes | str | os.PathLike

SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".tga", ".jp2", ".avif"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff"),
    "video": (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".3gp"),
}
_SIGNATURES = (  # offset, bytes, suffix
    (0, b"\x89PNG", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"GIF8", ".gif"),
    (8, b"WEBP", ".webp"),
    (8, b"WAVE", ".wav"),
    (0, b"fLaC", ".flac"),
    (0, b"OggS", ".ogg"),
    (0, b"ID3", ".mp3"),
    (4, b"ftyp", ".mp4"),
    (0, b"\x1a\x45\xdf\xa3", ".mkv"),
    (8, b"AVI ", ".avi"),
    (0, b"%PDF-", ".pdf"),
)
_TS_PACKET, _TS_SYNC = 188, b"\x47"  # bytes of a packet, and its first one


class MediaError(ValueError):
    """A medium that cannot be read, is incomplete or exceeds the limits; the message names the file."""


@dataclass(frozen=True)
class Limits:
    """What a single medium may cost; checked before decoding wherever the file's header allows it."""

    max_pixels: int = 64_000_000  # of an image or a video frame
    max_seconds: float = 3600.0  # of sound or video
    max_bytes: int = 1 << 31  # of a file, of the frames taken from one clip, and of a decoded track at its own rate
    max_frames: int = 250_000  # of a video, all of them, not only those taken
    max_pages: int = 1000  # of a PDF
    page_seconds: float = 5.0  # of a processor, to draw one of them


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, eq=False)
class Page:
    """One page of a PDF: a source of an image. file: bytes or path of the PDF; number: from 1."""

    file: bytes | os.PathLike
    number: int


def is_url(source: object) -> bool:
    return isinstance(source, str) and "://" in source


def media_kind(path: str | os.PathLike) -> Kind | None:
    """The modality of a path or URL by its extension, None if it is none of ours. A file .ts is a video only if it begins as one."""
    name = os.fspath(path)
    suffix = os.path.splitext(urlsplit(name).path if is_url(name) else name)[1].lower()
    if suffix == ".ts" and os.path.isfile(name) and not _is_transport_stream(name):
        return None
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def _is_transport_stream(path: str) -> bool:
    """Whether a file begins with packets of MPEG-TS (ISO/IEC 13818-1, 2.4.3) and is not TypeScript; one that cannot be read may be."""
    try:
        with open(path, "rb") as file:
            return file.read(2 * _TS_PACKET + 1)[::_TS_PACKET] == 3 * _TS_SYNC
    except OSError:
        return True


def suffix_of(data: bytes) -> str:
    """The extension for a file of these bytes by their signature, "" for less common formats (decoding needs none)."""
    return next((suffix for offset, signature, suffix in _SIGNATURES if data.startswith(signature, offset)), "")


def called(kind: Kind | Literal["PDF"], source: object) -> str:
    """What to call a medium in a message."""
    if isinstance(source, Page):
        return f"page {source.number} of {called('PDF', source.file)}"
    if isinstance(source, str | os.PathLike):
        return f"{kind} {os.fspath(source)}"
    return f"{kind} of {len(source)} bytes in memory" if isinstance(source, bytes) else f"{kind} given as {type(source).__name__}"


@contextlib.contextmanager
def naming(kind: Kind | Literal["PDF"], source: object) -> Iterator[str]:
    """Yield what to call the source in a message; any failure in the block becomes a MediaError that begins with it.

    Decoders raise almost anything on damaged data (struct.error, SyntaxError, IndexError, ...), so all exceptions are
    translated; the original one stays as the cause.
    """
    name = called(kind, source)
    try:
        yield name
    except MediaError:
        raise
    except FileNotFoundError as error:
        raise MediaError(f"{name} does not exist") from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise MediaError(f"{name} is broken or cannot be read: {reason}") from error


def open_source(name: str, source: File, limits: Limits) -> BinaryIO:
    """A seekable binary file. Raises MediaError if it is empty or larger than limits.max_bytes; at most that much of a URL is fetched."""
    file: BinaryIO
    if isinstance(source, bytes):
        file = io.BytesIO(source)
    elif isinstance(source, str) and is_url(source):
        with cast(BinaryIO, fsspec.open(source, "rb").open()) as remote:
            file = io.BytesIO(remote.read(limits.max_bytes + 1))
    elif isinstance(source, str | os.PathLike):
        file = open(source, "rb")
    else:
        raise MediaError(f"{name} must be bytes, a path, a URL or an array")
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not 0 < size <= limits.max_bytes:
        file.close()
        raise MediaError(f"{name} is empty" if size == 0 else f"{name} is larger than the limit of {limits.max_bytes} bytes")
    return file


def check_pixels(name: str, width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise MediaError(f"{name} has no pixels ({width} x {height})")
    if width * height > limits.max_pixels:
        raise MediaError(f"{name} has {width} x {height} pixels, more than the limit of {limits.max_pixels}")


def check_samples(name: str, samples: int, rate: int, limits: Limits) -> None:
    """Of a decoded track, mono float32: a small file can hold hours of silence at any rate."""
    check_seconds(name, samples / rate, limits)
    if 4 * samples > limits.max_bytes:
        raise MediaError(f"{name} decodes to {4 * samples} bytes, more than the limit of {limits.max_bytes}")


def check_seconds(name: str, seconds: float, limits: Limits) -> None:
    if seconds > limits.max_seconds:
        raise MediaError(f"{name} lasts more than the limit of {limits.max_seconds:g} seconds")
