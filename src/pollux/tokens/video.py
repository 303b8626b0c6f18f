"""A video becomes a span per frame: its time as text, its patches, and the sound until the next frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pollux.tokens import audio, image
from pollux.tokens.config import AudioTokens, ImageTokens, VideoTokens


@dataclass(frozen=True)
class FrameSpan:
    """One frame of a video; N patches of F features, S sound tokens of A features."""

    time: str  # "2s", "1.5s"
    features: np.ndarray  # float32 [N, F]
    coord: np.ndarray  # int32 [N, 2]
    sound: np.ndarray  # float32 [S, A]; S = 0 without sound


def time_text(seconds: float) -> str:
    """The shortest form with at most one decimal: 2 -> "2s", 1.46 -> "1.5s"."""
    return f"{seconds:.1f}".removesuffix(".0") + "s"


def clock_text(seconds: float) -> str:
    """Minutes and whole seconds, rounded down: 61.9 -> "01:01". Times that a file keeps in milliseconds count as what they stand for."""
    whole = int(seconds + 6e-4)
    return f"{whole // 60:02d}:{whole % 60:02d}"


def tokens(
    frames: np.ndarray, times: Sequence[float] | np.ndarray, sound: np.ndarray, config: VideoTokens, audio_config: AudioTokens
) -> list[FrameSpan]:
    """Spans of one clip.

    frames: uint8 [F, H, W, 3]; times: F seconds, ascending; sound: float32 [n] at audio_config.rate, empty if there is none.
    The first frame's span also holds any sound before it. With config.difference the features of a pixel are its three
    values, then their change since the previous frame (0 for the first). Raises ValueError if there is no frame.
    """
    if len(frames) == 0 or len(frames) != len(times):
        raise ValueError(f"a video needs at least one frame and a time for each, got {len(frames)} frames and {len(times)} times")
    _, height, width, _ = frames.shape
    rows, columns = image.grid(height, width, ImageTokens(config.patch, config.stride, config.max_tokens))
    height, width = rows * config.stride, columns * config.stride
    if frames.shape[1:3] != (height, width):
        frames = np.stack([image.resize(frame, height, width) for frame in frames])
    features = image.cut(frames, config.patch, config.stride)
    if config.standardise:
        features = image.standardised(features)
    if config.difference:
        pixels = features.reshape(*features.shape[:2], -1, 3)
        features = np.concatenate([pixels, np.diff(pixels, axis=0, prepend=pixels[:1])], axis=-1).reshape(*features.shape[:2], -1)
    ends = [round(time * audio_config.rate) for time in times[1:]] + [len(sound)]
    pieces = np.split(sound if config.sound else sound[:0], ends[:-1])
    coord = image.coordinates(rows, columns)
    return [
        FrameSpan(time_text(time), patch, coord, audio.tokens(piece, audio_config))
        for time, patch, piece in zip(times, features, pieces, strict=True)
    ]
