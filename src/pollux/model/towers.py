"""Towers: what turns the raw features of a modality into vectors before they are projected into the decoder.

Soft tokens come in slots [G, N]; which of them belong to one image or one sound follows from their `coord`, whose first token is (0, 0)
for an image and (., 0) for a sound. Shapes: G groups, N soft tokens, F features, W width of the tower, D model.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pollux.model import conformer, vision
from pollux.model.config import AudioTower, FrameTower, PatchTower, Tower, VisionTower
from pollux.model.layers import layer_norm
from pollux.model.matmul import matmul
from pollux.model.spec import Params, Spec
from pollux.tokens.sequence import SoftBatch

LAYER_NORM_EPS = 1e-5


def declare(tower: Tower, features: int) -> tuple[int, dict[str, Any]]:
    """Width of the outputs, and the parameters."""
    if isinstance(tower, VisionTower):
        return tower.width, vision.declare(tower)
    if isinstance(tower, AudioTower):
        return tower.out, conformer.declare(tower)
    if isinstance(tower, FrameTower):
        return features, {}
    width = tower.width
    spec: dict[str, Any] = {
        "patch": Spec((features, width), ("features", None)),
        "patch_bias": Spec((width,), (None,), 0.0),
        "positions": Spec((tower.positions, 2, width), ("grid", None, None), "normal", 16 * width),
    }
    for name, size in (("in_norm", features), ("patch_norm", width), ("out_norm", width)):
        spec |= {name: {"scale": Spec((size,), (None,), 1.0), "bias": Spec((size,), (None,), 0.0)}}
    return width, spec


def apply(params: Params, tower: Tower, batch: SoftBatch, eps: float, dtype) -> jax.Array:
    """Features [G, N, F] -> [G, N, W]."""
    if isinstance(tower, VisionTower):
        return vision.encode(params, tower, batch, eps, dtype)
    if isinstance(tower, AudioTower):
        return conformer.encode(params, tower, batch, eps, dtype)
    x = jnp.asarray(batch.features).astype(dtype)
    return _patches(params, tower, x, batch.coord) if isinstance(tower, PatchTower) else x


def _patches(params: Params, tower: PatchTower, x_GNF: jax.Array, coord_GN2: jax.Array) -> jax.Array:
    def norm(name: str, x: jax.Array) -> jax.Array:
        return layer_norm(x, params[name]["scale"], params[name]["bias"], LAYER_NORM_EPS)

    x = matmul(norm("in_norm", x_GNF), params["patch"]) + params["patch_bias"].astype(x_GNF.dtype)
    at = jnp.clip(coord_GN2, 0, tower.positions - 1)
    table = params["positions"].astype(x.dtype)  # of columns, then of rows
    return norm("out_norm", norm("patch_norm", x) + table[at[..., 1], 0] + table[at[..., 0], 1])
