"""How media become tokens. Part of a model folder's config.json, so that a model is always read as it was trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pollux.plain import from_plain


@dataclass(frozen=True)
class ImageTokens:
    """Patches of `patch`x`patch` pixels every `stride` pixels; an image is shrunk (never enlarged beyond one
    stride) to at most `max_tokens` patches, keeping its aspect ratio. patch > stride gives overlapping patches.
    With `fill`, as in Gemma 4, it is enlarged too, to as many whole patches as the budget and its aspect ratio allow."""

    patch: int = 16
    stride: int = 16
    max_tokens: int = 256
    standardise: bool = False  # subtract each channel's mean over the image and divide by the deviation; else pixels are in [-1, 1]
    two_way: bool = True  # patches of one image see each other both ways
    fill: bool = False
    unit: bool = False  # pixels are in [0, 1]

    def __post_init__(self):
        _require_patches(self)

    @property
    def features(self) -> int:
        return self.patch * self.patch * 3


@dataclass(frozen=True)
class AudioTokens:
    """Log-mel frames, `stack` of them a token, or raw samples (`kind="raw"`, `frame` samples a token). "usm_mel" are the frames of
    Gemma 4's audio tower: magnitudes on HTK's scale, the first window centred at 0 s."""

    kind: str = "log_mel"  # or "usm_mel" or "raw"
    rate: int = 16_000  # Hz
    window: int = 400  # samples, 25 ms
    hop: int = 160  # samples, 10 ms
    mels: int = 128
    stack: int = 4  # mel frames a token: 40 ms
    frame: int = 640  # samples a token in raw mode: 40 ms
    max_tokens: int = 1500
    two_way: bool = False

    def __post_init__(self):
        if self.kind not in ("log_mel", "usm_mel", "raw"):
            raise ValueError(f"audio kind {self.kind!r} must be 'log_mel', 'usm_mel' or 'raw'")

    @property
    def features(self) -> int:
        return self.frame if self.kind == "raw" else self.mels * self.stack

    @property
    def samples_per_token(self) -> int:
        return self.frame if self.kind == "raw" else self.hop * self.stack


@dataclass(frozen=True)
class VideoTokens:
    """Frames at `fps`, each as patches like an image, after its time as text ("1.5s"), followed by the sound up to the next frame.
    With `difference`, the features of a patch are its pixels and their change since the previous frame.
    With `pictures`, as in Gemma 4, a clip is its time ("00:01") and a picture for each frame, as `image` says within this max_tokens;
    without markers of a clip, changes or sound."""

    fps: float = 1.0  # 0 = max_frames of them, spread evenly by their number
    max_frames: int = 64
    patch: int = 16
    stride: int = 16
    max_tokens: int = 64  # a frame
    standardise: bool = False  # as for an image, over the whole clip
    difference: bool = True
    sound: bool = True
    two_way: bool = True  # all positions of one clip see each other both ways
    pictures: bool = False

    def __post_init__(self):
        _require_patches(self)
        if self.pictures and (self.difference or self.sound or self.standardise or self.two_way):
            raise ValueError("frames that are pictures leave no place for difference, sound, standardise and two_way: set them to False")

    @property
    def features(self) -> int:
        return self.patch * self.patch * 3 * (2 if self.difference else 1)


@dataclass(frozen=True)
class TokensConfig:
    image: ImageTokens = field(default_factory=ImageTokens)
    audio: AudioTokens = field(default_factory=AudioTokens)
    video: VideoTokens = field(default_factory=VideoTokens)

    @classmethod
    def from_json(cls, data: dict[str, dict[str, Any]]) -> TokensConfig:
        """Inverse of dataclasses.asdict; what is missing has its default. Raises ValueError naming an unknown field."""
        return from_plain(cls, data, "tokens")


def _require_patches(config: ImageTokens | VideoTokens) -> None:
    if not 0 < config.stride <= config.patch:
        raise ValueError(f"patch {config.patch} must be at least as wide as the stride {config.stride}, which must be positive")
    if config.max_tokens < 1:
        raise ValueError(f"max_tokens {config.max_tokens} must be at least 1")
