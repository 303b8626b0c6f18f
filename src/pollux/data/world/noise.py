"""Gaussian noise for pictures and sounds, cut from one long fixed strip, because drawing it anew would cost more than painting."""

from __future__ import annotations

import functools
import math

import numpy as np

_LENGTH = 1 << 20


@functools.cache
def _strip() -> np.ndarray:
    return np.random.Generator(np.random.PCG64(0)).standard_normal(_LENGTH, dtype=np.float32)


def normal(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Standard normal float32 of this shape, a read-only piece of the strip that depends on the seed alone.

    Raises ValueError for more than about a million values.
    """
    size = math.prod(shape)
    if size >= _LENGTH:
        raise ValueError(f"noise of shape {shape} has {size} values, more than the {_LENGTH - 1} that can be given")
    start = seed % (_LENGTH - size)
    piece = _strip()[start : start + size].reshape(shape)
    piece.flags.writeable = False
    return piece
