"""Messages of predictLongRunning, by which the API's films from a prompt are asked for; they have the words of the Veo models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pollux.serve.wire.message import wire


@dataclass(frozen=True)
class FirstFrame:
    bytes_base64_encoded: bytes = b""
    mime_type: str = ""


@dataclass(frozen=True)
class EarlierFilm:
    """That is to go on. A client that has downloaded a film sends its address and its bytes; the address counts."""

    uri: str = ""
    encoded_video: bytes = wire(also=("bytesBase64Encoded", "bytes_base64_encoded"), default=b"")
    encoding: str = wire(also=("mimeType", "mime_type"), default="video/mp4")


@dataclass(frozen=True)
class Instance:
    prompt: str = ""
    image: FirstFrame | None = None
    video: EarlierFilm | None = None
    last_frame: Any = None
    reference_images: Any = None


@dataclass(frozen=True)
class Parameters:
    """negativePrompt, enhancePrompt, personGeneration and webhookConfig have no field, and clients are told that these were ignored."""

    sample_count: int = 1
    duration_seconds: float | None = None
    aspect_ratio: str = ""
    resolution: str = ""
    fps: int | None = None
    seed: int | None = wire(bits=64)


@dataclass(frozen=True)
class FilmRequest:
    instances: tuple[Instance, ...] = ()
    parameters: Parameters = Parameters()
