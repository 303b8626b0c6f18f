"""Embedders: the raw features of an image, a sound or a video frame become soft tokens.

Shapes: B rows, N soft tokens, F features of one, D model, S pixels of a patch, G cells along a side of the colour grid.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from pollux.model import towers
from pollux.model.config import ModelConfig, SoftInputConfig
from pollux.model.layers import activation, layer_norm, norm, rms_norm
from pollux.model.matmul import matmul
from pollux.model.spec import Params
from pollux.model.weight import Weight
from pollux.tokens.sequence import SoftBatch

PLACE = 4.0  # what the tables of rows and columns are multiplied by, so that Adam's equal steps move places four times as fast
FAINT = 0.2  # of the picture's deviation: a patch that varies less is mostly noise


def _norm_matmul(params: Params, config: ModelConfig, x: jax.Array, w: jax.Array | Weight) -> jax.Array:
    """matmul(norm(x), w) with the norm's scale moved into w: raw features are wide and need no gradient, and so they get none."""
    if isinstance(w, Weight):
        return matmul(norm(params, config, x), w)
    scaled = params["scale"][:, None] * w
    if config.norm == "layer":
        centred = layer_norm(x, jnp.ones(()), jnp.zeros(()), config.norm_eps)
        return matmul(centred, scaled) + (params["bias"] @ w).astype(x.dtype)
    return matmul(rms_norm(x, None, config.norm_eps), scaled)


def embed_soft(params: Params, config: ModelConfig, soft: SoftInputConfig, batch: SoftBatch, dtype) -> jax.Array:
    """Raw features [B, N, F] -> soft tokens [B, N, D]: projection -> norm -> + row and column position.

    params: of all embedders, by name. One that shares another's adds what changed to what that one sees in the still pixels.
    """
    base = next((s for s in config.soft_inputs if s.name == soft.shares), soft)
    if base.tower is not None:
        y = towers.apply(params[base.name]["tower"], base.tower, batch, config.norm_eps, dtype)
        return matmul(rms_norm(y, None, config.norm_eps), params[base.name]["out"])
    x = batch.features.astype(dtype)
    if soft.shares:
        pixels = _pixels(soft, x)
        x = _project(params[base.name], config, base, pixels[..., :3].reshape(*x.shape[:2], -1))
        if soft.stem:
            x += matmul(_stem(params[soft.name], soft, form(pixels)[..., 1:]), params[soft.name]["out"])
    else:
        x = _project(params[soft.name], config, soft, x)
    x = norm(params[base.name]["out_norm"], config, x)
    if base.grid:
        coord = jnp.clip(batch.coord, 0, base.grid - 1)
        x += PLACE * (params[base.name]["row"][coord[..., 0]] + params[base.name]["column"][coord[..., 1]]).astype(dtype)
    return x


def _project(params: Params, config: ModelConfig, soft: SoftInputConfig, x: jax.Array) -> jax.Array:
    """Features [B, N, F] -> [B, N, D]: a linear map or an MLP after a norm or a stem; with a colour grid, form and colours apart."""
    first = params["hidden" if soft.hidden else "out"]
    if soft.in_norm:
        x = _norm_matmul(params["in_norm"], config, x, first)
    elif soft.colour_grid:
        pixels = _pixels(soft, x)
        x = rms_norm(matmul(_stem(params, soft, form(pixels)), first), None, config.norm_eps)
        x += rms_norm(matmul(_coarse(pixels, soft.colour_grid), params["colours"]), None, config.norm_eps)
    else:
        x = matmul(_stem(params, soft, _pixels(soft, x)) if soft.stem else x, first)
    return matmul(activation("gelu", x), params["out"]) if soft.hidden else x


def _pixels(soft: SoftInputConfig, x_BNF: jax.Array) -> jax.Array:
    side = math.isqrt(soft.features // soft.in_channels)
    return x_BNF.reshape(*x_BNF.shape[:2], side, side, soft.in_channels)


def _stem(params: Params, soft: SoftInputConfig, x: jax.Array) -> jax.Array:
    """Convolutions inside each patch, [B, N, side, side, C] -> [B, N, features]; products with shifted copies side by side, which
    a CPU does faster than a convolution."""
    sides = soft.stem_sides()
    for i, (kernel, stride, _) in enumerate(soft.stem):
        last = stride * (sides[i + 1] - 1) + 1
        shifted = [x[:, :, r : r + last : stride, c : c + last : stride] for r in range(kernel) for c in range(kernel)]
        windows = jnp.concatenate(shifted, -1)
        x = activation("relu2", matmul(windows.reshape(len(x), -1, windows.shape[-1]), params[f"stem_{i}"]))
        x = x.reshape(*windows.shape[:-1], -1)
    return x.reshape(*x.shape[:2], -1)


def _coarse(pixels: jax.Array, grid: int) -> jax.Array:
    """Means over a grid of cells: [B, N, side, side, C] -> [B, N, grid * grid * C]."""
    *lead, side, _, channels = pixels.shape
    cells = pixels.reshape(*lead, grid, side // grid, grid, side // grid, channels)
    return cells.mean((-4, -2)).reshape(*lead, -1)


def form(pixels: jax.Array) -> jax.Array:
    """How each patch varies along its strongest colour direction, whatever colour that is.

    pixels [B, N, side, side, 3 c]: standardised colours and then, with c = 2, their change since the previous frame. Returns
    [B, N, side, side, c], the projections on the principal axis of all colours of the patch (now and before), divided by
    their deviation. The axis points away from the mean of the picture, which is 0, so that the sign does not flip within an object.
    """
    channels = [pixels[..., i] for i in range(pixels.shape[-1])]  # planes: a CPU is slow at sums over three neighbouring values
    now, changes = channels[:3], [channels[i : i + 3] for i in range(3, len(channels), 3)]
    seen = [now, *([n - c for n, c in zip(now, change, strict=True)] for change in changes)]
    mean = [_sum(x[i].mean((-2, -1)) for x in seen) / len(seen) for i in range(3)]
    centred = [[x[i] - mean[i][..., None, None] for i in range(3)] for x in seen]
    covariance = [[_sum((x[i] * x[j]).mean((-2, -1)) for x in centred) / len(seen) for j in range(3)] for i in range(3)]
    largest = jnp.argmax(jnp.stack([covariance[i][i] for i in range(3)]), 0)
    axis = [jnp.where(largest == 0, row[0], jnp.where(largest == 1, row[1], row[2])) for row in covariance]
    for _ in range(6):  # power iteration
        axis = [_sum(c * a for c, a in zip(row, axis, strict=True)) for row in covariance]
        length = jax.lax.rsqrt(_sum(a * a for a in axis) + 1e-20)
        axis = [a * length for a in axis]
    sign = jnp.where(_sum(a * m for a, m in zip(axis, mean, strict=True)) < 0, -1.0, 1.0)
    # The variance along the axis a is a' C a.
    variance = _sum(a * _sum(c * b for c, b in zip(row, axis, strict=True)) for a, row in zip(axis, covariance, strict=True))
    unit = [(a * sign / (jnp.sqrt(jnp.maximum(variance, 0)) + FAINT))[..., None, None] for a in axis]
    projected = [_sum(u * x for u, x in zip(unit, planes, strict=True)) for planes in (centred[0], *changes)]
    return jnp.stack(projected, -1)


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)
