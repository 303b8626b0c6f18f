"""What a model reads and writes: parts (text, image, audio, video, function calls), turns of parts, and documents.

One schema serves as the row of a training set, the turn of a chat and the body of a request. Media parts hold a source and
decode it only when asked; a document's form on disk is one line of JSON with relative media paths.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image

from pollux import media
from pollux.media import DEFAULT_LIMITS, Limits, VideoArray

ROLES = ("user", "model", "system", "tool", "")


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True, eq=False)
class Image:
    """A picture. `source`: bytes of a file, path, URL, uint8 array [H, W, 3] or PIL image."""

    source: bytes | str | os.PathLike | np.ndarray | PIL.Image.Image

    def pixels(self, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
        """uint8 RGB [H, W, 3]. Raises MediaError."""
        return media.decode_image(self.source, limits)


@dataclass(frozen=True, eq=False)
class Audio:
    """A sound. `source`: bytes of a file, path, URL or float array [n] or [n, channels], which needs its `rate` in Hz."""

    source: bytes | str | os.PathLike | np.ndarray
    rate: int | None = None

    def samples(self, rate: int, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
        """Mono float32 [n] in [-1, 1] at `rate` Hz. Raises MediaError."""
        return media.decode_audio(self.source, self.rate, rate, limits)


@dataclass(frozen=True, eq=False)
class Video:
    """A clip. `source`: bytes of a file, path, URL or VideoArray."""

    source: bytes | str | os.PathLike | VideoArray

    def frames(self, fps: float, max_frames: int, limits: Limits = DEFAULT_LIMITS) -> tuple[np.ndarray, np.ndarray]:
        """Frames uint8 [F, H, W, 3] and their times float64 [F] in seconds, see media.decode_video. Raises MediaError."""
        return media.decode_video(self.source, fps, max_frames, limits)

    def samples(self, rate: int, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
        """The sound, mono float32 [n] in [-1, 1] at `rate` Hz, sample 0 at the first frame; n = 0 without sound. Raises MediaError."""
        return media.decode_video_sound(self.source, rate, limits)


@dataclass(frozen=True)
class FunctionCall:
    name: str
    args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    id: str | None = None


@dataclass(frozen=True)
class FunctionResponse:
    name: str
    response: Mapping[str, Any] = field(default_factory=dict, hash=False)
    id: str | None = None


Part = Text | Image | Audio | Video | FunctionCall | FunctionResponse


@dataclass(frozen=True)
class Content:
    """One turn; role "" is plain running text without turn markers. Raises ValueError for an unknown role or a part that is none."""

    role: str
    parts: tuple[Part, ...]

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r} must be one of {', '.join(map(repr, ROLES))}")
        object.__setattr__(self, "parts", tuple(self.parts))
        for part in self.parts:
            if not isinstance(part, Part):
                raise ValueError(f"a {type(part).__name__} is not a part; wrap it in Text, Image, Audio, Video or use to_contents")


@dataclass(frozen=True)
class Document:
    """A shared prefix and any number of continuations.

    Each branch sees the prefix and itself, never another branch. `align` is a text that means the same as the media in the
    prefix; the two make a pair of the contrastive loss.
    """

    contents: tuple[Content, ...]
    branches: tuple[tuple[Content, ...], ...] = ()
    align: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "contents", tuple(self.contents))
        object.__setattr__(self, "branches", tuple(tuple(branch) for branch in self.branches))
