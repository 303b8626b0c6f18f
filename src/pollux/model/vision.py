"""The vision tower of Gemma 4: a transformer over the patches of each image, two-way, with rotations by row and by column.

Shapes: G groups, N soft tokens, p x p patches of a soft token, M = N p^2 patches, W width, N heads of H.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pollux.model.attention import rope_angles, rotate
from pollux.model.config import VisionTower
from pollux.model.dot_attention import attend_within
from pollux.model.layers import activation, rms_norm
from pollux.model.matmul import matmul
from pollux.model.spec import Params, Spec, stack
from pollux.tokens.sequence import SoftBatch


def linear(inputs: int, outputs: int, axes: tuple[str | None, str | None], clipped: bool) -> dict[str, Spec]:
    """A linear map whose inputs and outputs may be kept within learned bounds."""
    ends = {"input_min": -jnp.inf, "input_max": jnp.inf, "output_min": -jnp.inf, "output_max": jnp.inf} if clipped else {}
    return {"weight": Spec((inputs, outputs), axes)} | {name: Spec((), (), float(end)) for name, end in ends.items()}


def apply_linear(params: Params, x: jax.Array) -> jax.Array:
    if "input_min" not in params:
        return matmul(x, params["weight"])
    bound = {name: value.astype(x.dtype) for name, value in params.items() if name != "weight"}
    y = matmul(jnp.clip(x, bound["input_min"], bound["input_max"]), params["weight"])
    return jnp.clip(y, bound["output_min"], bound["output_max"])


def declare(t: VisionTower) -> dict[str, Any]:
    q, kv = t.num_heads * t.head_dim, t.num_kv_heads * t.head_dim
    layer: dict[str, Any] = {
        "q": linear(t.width, q, ("embed", "heads"), t.clipped),
        "k": linear(t.width, kv, ("embed", "kv_heads"), t.clipped),
        "v": linear(t.width, kv, ("embed", "kv_heads"), t.clipped),
        "o": linear(q, t.width, ("heads", "embed"), t.clipped),
        "gate": linear(t.width, t.hidden, ("embed", "mlp"), t.clipped),
        "up": linear(t.width, t.hidden, ("embed", "mlp"), t.clipped),
        "down": linear(t.hidden, t.width, ("mlp", "embed"), t.clipped),
    }
    layer |= {name: Spec((t.head_dim,), (None,), 1.0) for name in ("q_norm", "k_norm")}
    blocks = ("attention", "feed_forward")
    layer |= {f"{block}_{place}_norm": Spec((t.width,), (None,), 1.0) for block in blocks for place in ("pre", "post")}
    spec: dict[str, Any] = {
        "patch": Spec((3 * t.patch**2, t.width), ("features", "embed")),
        "positions": Spec((2, t.positions, t.width), (None, "grid", None), "normal", 16 * t.width),  # of columns, then of rows
        "layers": stack(layer, t.num_layers),
    }
    if t.standardise:
        spec |= {"mean": Spec((t.width,), (None,), 0.0), "inverse_deviation": Spec((t.width,), (None,), 1.0)}
    return spec


def encode(params: Params, t: VisionTower, batch: SoftBatch, eps: float, dtype) -> jax.Array:
    """Blocks of pixels in [0, 1], features [G, N, (p patch)^2 3] -> [G, N, W], the mean of the p x p patches of each.

    A token at (0, 0) begins the next image of its row of slots.
    """
    G, N, _ = batch.features.shape
    p, side = t.pool, t.patch
    blocks = 2 * jnp.asarray(batch.features) - 1
    patches = blocks.reshape(G, N, p, side, p, side, 3).transpose(0, 1, 2, 4, 3, 5, 6).reshape(G, N * p * p, side * side * 3)
    inside = jnp.stack(jnp.meshgrid(jnp.arange(p), jnp.arange(p), indexing="ij"), -1).reshape(p * p, 2)
    coord = (batch.coord[:, :, None] * p + inside).reshape(G, -1, 2)
    coord = jnp.clip(coord, 0, t.positions - 1)
    image = jnp.repeat(jnp.cumsum((batch.coord == 0).all(-1), 1), p * p, axis=1)
    half = [rope_angles(coord[..., axis], t.head_dim // 2, t.rope_base, 1.0) for axis in (1, 0)]

    def turn(x: jax.Array) -> jax.Array:
        by_column, by_row = jnp.split(x, 2, -1)
        return jnp.concatenate([rotate(by_column, half[0]), rotate(by_row, half[1])], -1)

    def block(x: jax.Array, layer: Params) -> tuple[jax.Array, None]:
        def heads(name: str, count: int) -> jax.Array:
            return apply_linear(layer[name], h).reshape(G, -1, count, t.head_dim)

        h = rms_norm(x, layer["attention_pre_norm"], eps)
        q = turn(rms_norm(heads("q", t.num_heads), layer["q_norm"], eps))
        k = turn(rms_norm(heads("k", t.num_kv_heads), layer["k_norm"], eps))
        seen = attend_within(q, k, rms_norm(heads("v", t.num_kv_heads), None, eps), image, 1.0)
        x += rms_norm(apply_linear(layer["o"], seen.reshape(G, N * p * p, -1)), layer["attention_post_norm"], eps)
        h = rms_norm(x, layer["feed_forward_pre_norm"], eps)
        h = apply_linear(layer["down"], activation("gelu", apply_linear(layer["gate"], h)) * apply_linear(layer["up"], h))
        return x + rms_norm(h, layer["feed_forward_post_norm"], eps), None

    with jax.named_scope("vision_tower"):
        table = params["positions"].astype(dtype)
        x = matmul(patches.astype(dtype), params["patch"]) + table[0][coord[..., 1]] + table[1][coord[..., 0]]
        x, _ = jax.lax.scan(block, x, params["layers"])
        pooled = x.reshape(G, N, p * p, t.width).astype(jnp.float32).mean(2).astype(dtype).astype(jnp.float32) * t.width**0.5
        if t.standardise:
            pooled = (pooled - params["mean"].astype(jnp.float32)) * params["inverse_deviation"].astype(jnp.float32)
        return pooled.astype(dtype)
