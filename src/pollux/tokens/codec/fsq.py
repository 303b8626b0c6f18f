"""Finite scalar quantisation (Mentzer et al. 2023): every dimension is squashed by a tanh and rounded to one of `levels` integers.

A digit is a group of dimensions in mixed radix. Every function takes numpy or jax arrays and gives the same kind back, so that the
data loop encodes in plain numpy while training differentiates the same lines.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # numpy.ndarray or jax.Array
_EPSILON = 1e-3  # the tanh reaches past the outermost integers, and two levels have a finite shift


def bound(x: Array, levels: tuple[int, ...]) -> Array:
    """Squash float [..., d] into about [-levels/2, levels/2 - 1]; 0 stays 0. Levels are even, hence the half offset."""
    half = (np.asarray(levels, np.float32) - 1) * (1 + _EPSILON) / 2
    shift = np.arctanh(0.5 / half)
    return x.__array_namespace__().tanh(x + shift) * half - 0.5


def quantise(x: Array, levels: tuple[int, ...]) -> Array:
    """Round float [..., d] to whole numbers in [-levels/2, levels/2 - 1], still float."""
    return x.__array_namespace__().round(bound(x, levels))


def quantise_straight_through(x: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """`quantise` with the gradient of `bound`."""
    bounded = bound(x, levels)
    return bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)


def to_unit(quantised: Array, levels: tuple[int, ...]) -> Array:
    """Whole numbers [..., d] -> the centres of `levels` equal parts of [-1, 1]: what the decoder reads."""
    return (quantised + 0.5) * (2 / np.asarray(levels, np.float32))


def to_digit(quantised: Array, levels: tuple[int, ...]) -> Array:
    """Whole numbers [..., d] -> int32 [...] in [0, prod(levels)), the first dimension changing fastest."""
    return ((quantised.astype(np.int32) + np.asarray(levels, np.int32) // 2) * _radix(levels)).sum(-1).astype(np.int32)


def from_digit(digit: Array, levels: tuple[int, ...]) -> Array:
    """Inverse of `to_digit`: int [...] -> float32 [..., d]."""
    sizes = np.asarray(levels, np.int32)
    return (digit[..., None] // _radix(levels) % sizes - sizes // 2).astype(np.float32)


def _radix(levels: tuple[int, ...]) -> np.ndarray:
    return np.cumprod((1, *levels[:-1])).astype(np.int32)
