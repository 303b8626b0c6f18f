"""Which matrices are quantised, and the nearest of the values that 4 or 8 bits can hold, for numpy and for JAX.

Every group of 32 inputs of an output has a scale of 16 bits and stands for w = (code - zero) * scale (quantized.py has the bytes).
Shapes: K inputs, N outputs of a matrix, G groups of inputs, I inputs of a group.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pollux.model.config import ModelConfig
from pollux.model.folder import tensor_name
from pollux.model.params import Params, declare
from pollux.model.quantized import INPUTS
from pollux.model.spec import Spec, is_spec

Array = Any  # numpy.ndarray or jax.Array
MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "embed", "unembed", "project", "hidden", "out", "colours")
SHRINKS = np.linspace(0.7, 1.1, 17)  # candidates for a scale, relative to the one that just reaches the largest weight


def matrices(config: ModelConfig) -> dict[str, Spec]:
    """The matrices that are quantised, by name: projections, feed-forward, experts, embeddings and the embedders of media.

    Routers, tables of places and the towers of other families keep their dtype.
    """
    specs = {tensor_name(path): spec for path, spec in jax.tree_util.tree_leaves_with_path(declare(config), is_leaf=is_spec)}

    def is_matrix(name: str, spec: Spec) -> bool:
        *folders, last = name.split(".")
        wanted = last in MATRICES or last.startswith("stem_")
        return wanted and spec.init == "normal" and len(spec.shape) >= 2 and "tower" not in folders

    return {name: spec for name, spec in specs.items() if is_matrix(name, spec)}


def nearest(weight: Array, bits: int) -> tuple[Array, Array]:
    """Codes uint8 [..., K, N] and scales float16 [..., G, N] with the least squared error of each group; weight float32 [..., K, N]."""
    xp = weight.__array_namespace__()
    *lead, K, N = weight.shape
    groups = xp.pad(weight, [(0, 0)] * len(lead) + [(0, -K % INPUTS), (0, 0)]).reshape(*lead, -1, INPUTS, N)
    scales = best_scales(groups, 1.0, bits)
    codes = encode(groups, scales[..., None, :], bits)
    return codes.reshape(*lead, -1, N)[..., :K, :], scales


def best_scales(groups: Array, importance: Array | float, bits: int) -> Array:
    """Scales float16 [..., N] that minimise the squared error of rounding groups [..., I, N], times the importance of each input.

    The largest weight takes the most negative code or comes near to it, so that a scale may be negative."""
    xp = groups.__array_namespace__()
    most = xp.take_along_axis(groups, xp.argmax(xp.abs(groups), axis=-2)[..., None, :], axis=-2)[..., 0, :]

    def better(i, found):
        best, least = found
        scales = (-most * shrinks[i] / (1 << (bits - 1))).astype("float16")
        error = groups - decode(encode(groups, scales[..., None, :], bits), scales[..., None, :], bits)
        error = xp.sum(importance * error * error, axis=-2)
        return xp.where(error < least, scales, best), xp.minimum(error, least)

    shrinks = xp.asarray(SHRINKS, dtype="float32")
    found = xp.zeros(most.shape, "float16"), xp.full(most.shape, np.inf, dtype="float32")
    if xp is jnp:
        return jax.lax.fori_loop(0, len(SHRINKS), better, found)[0]  # unrolled, it compiles for half a minute
    return functools.reduce(lambda found, i: better(i, found), range(len(SHRINKS)), found)[0]


def encode(weight: Array, scale: Array, bits: int) -> Array:
    """The nearest codes, uint8. 8 bits leave -128 out, which the kernels cannot have."""
    xp = weight.__array_namespace__()
    zero = 1 << (bits - 1)
    scale = scale.astype("float32")
    codes = xp.where(scale == 0, 0, xp.rint(weight / xp.where(scale == 0, 1, scale)))
    return (xp.clip(codes, 1 - zero if bits == 8 else -zero, zero - 1) + zero).astype("uint8")


def decode(codes: Array, scale: Array, bits: int) -> Array:
    return (codes.astype("float32") - (1 << (bits - 1))) * scale.astype("float32")


@functools.partial(jax.jit, static_argnames=("config", "bits"))
def rounded(params: Params, config: ModelConfig, bits: int) -> Params:
    """The parameters with every matrix at the nearest values that so many bits can hold."""
    chosen = matrices(config)

    def of(path, leaf: jax.Array) -> jax.Array:
        spec = chosen.get(tensor_name(path))
        if spec is None:
            return leaf
        weight = leaf.astype(jnp.float32)
        near = _values(weight.swapaxes(-1, -2), bits).swapaxes(-1, -2) if spec.axes[-2] == "vocab" else _values(weight, bits)
        return near.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(of, params)


def _values(weight: jax.Array, bits: int) -> jax.Array:
    codes, scales = nearest(weight, bits)
    return decode(codes, jnp.repeat(scales, INPUTS, axis=-2)[..., : weight.shape[-2], :], bits)
