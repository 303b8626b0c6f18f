"""Images become patches: resize to a grid under the token budget, keep the aspect ratio, cut, scale to [-1, 1].

This runs inside the training loop, so a picture that already lies on the grid costs a transposed copy and nothing else.
H, W pixels; N patches in row-major order; F = patch * patch * 3 features of a patch in the order (row, column, channel).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image

from pollux.tokens.config import ImageTokens


def grid(height: int, width: int, config: ImageTokens) -> tuple[int, int]:
    """Rows and columns of patches for an image of height x width pixels: sides go to the nearest multiple of the stride,
    and if that is over `max_tokens` the image shrinks, both sides by one factor, until it fits."""
    if config.fill:
        return _filling(height, width, config)
    rows, columns = (max(1, round(side / config.stride)) for side in (height, width))
    if rows * columns <= config.max_tokens:
        return rows, columns
    scale = min(1.0, config.stride * math.sqrt(config.max_tokens / (height * width))) / config.stride
    rows, columns = (max(1, int(side * scale + 1e-9)) for side in (height, width))
    return min(rows, config.max_tokens), min(columns, config.max_tokens)


def _filling(height: int, width: int, config: ImageTokens) -> tuple[int, int]:
    """The most rows and columns within the budget at the image's aspect ratio, rounded down; at least one of each (Gemma 4)."""
    factor = math.sqrt(config.max_tokens * config.stride**2 / (height * width))
    rows, columns = (math.floor(factor * side / config.stride) for side in (height, width))
    if rows == 0:
        return 1, min(width // height, config.max_tokens)
    if columns == 0:
        return min(height // width, config.max_tokens), 1
    return rows, columns


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [height, width, 3], bicubic with antialiasing; the same array if the size does not change."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def cut(pixels: np.ndarray, patch: int, stride: int, unit: bool = False) -> np.ndarray:
    """uint8 [..., H, W, 3] on the grid -> float32 [..., N, F] in [-1, 1], or in [0, 1] with `unit`.

    If patch > stride the borders are replicated by patch - stride pixels in all, so that still N = H/stride * W/stride.
    """
    *lead, height, width, channels = pixels.shape
    rows, columns = height // stride, width // stride
    if patch > stride:
        pixels = pixels.take(_windows(rows, patch, stride), axis=-3).take(_windows(columns, patch, stride), axis=-2)
    blocks = pixels.reshape(*lead, rows, patch, columns, patch, channels).swapaxes(-4, -3)
    return np.take(_UNIT if unit else _SCALE, blocks).reshape(*lead, rows * columns, patch * patch * channels)


def patches(pixels: np.ndarray, config: ImageTokens) -> tuple[np.ndarray, np.ndarray]:
    """Patches of one image.

    pixels: uint8 [H, W, 3]. Returns features float32 [N, F] and coord int32 [N, 2], the (row, column) of each patch.
    """
    height, width, _ = pixels.shape
    rows, columns = grid(height, width, config)
    pixels = resize(pixels, rows * config.stride, columns * config.stride)
    features = cut(pixels, config.patch, config.stride, config.unit)
    return standardised(features) if config.standardise else features, coordinates(rows, columns)


def standardised(features: np.ndarray) -> np.ndarray:
    """Patches float32 [..., F] of one image or clip, minus the mean of each channel, divided by their common deviation.

    The deviation is kept above 0.05 (of 2), so that the noise of an even picture stays small.
    """
    pixels = features.reshape(-1, 3)
    mean = pixels.mean(0)
    centred = pixels - mean
    return (centred / max(float(np.sqrt(np.mean(centred**2))), 0.05)).reshape(features.shape)


@functools.lru_cache(maxsize=1024)
def coordinates(rows: int, columns: int) -> np.ndarray:
    """int32 [rows * columns, 2], (row, column) in row-major order; shared, hence read-only."""
    coord = np.indices((rows, columns), dtype=np.int32).reshape(2, -1).T.copy()
    coord.flags.writeable = False
    return coord


_SCALE = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)
_UNIT = (np.arange(256) / 255).astype(np.float32)


@functools.lru_cache(maxsize=1024)
def _windows(count: int, patch: int, stride: int) -> np.ndarray:
    """int [count * patch]: along one side, the pixels of each window, clipped at the border (which replicates it)."""
    start = np.arange(count) * stride - (patch - stride) // 2
    return np.clip(start[:, None] + np.arange(patch), 0, count * stride - 1).reshape(-1)
