"""Attention of every kind: MHA/GQA/MQA, local windows, RoPE (partial too), log-n queries, soft-cap, Gaussian prior, document masks.

Who sees whom follows from five integers per position (`Positions`), so packed documents, branches and two-way images need no more.
Shapes: B rows, T queries, S keys, N heads, K kv-heads, H head size, D model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pollux.model.config import AttentionConfig
from pollux.model.dot_attention import Rounded, attend
from pollux.model.layers import rms_norm
from pollux.model.matmul import matmul, matmuls
from pollux.model.spec import Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Positions:
    """Integers [B, T] that decide visibility. `index` is the order in the row; the others are as in tokens/sequence.py."""

    index: jax.Array
    position: jax.Array
    segment: jax.Array  # 0 = nothing there
    branch: jax.Array
    group: jax.Array


def visible(query: Positions, key: Positions, window: int = 0, two_way: bool = True) -> jax.Array:
    """bool [B, T, S]: same document, the prefix or the own branch, the past or the same two-way group within the window."""
    q, k = (jax.tree.map(lambda x: x[:, :, None], query), jax.tree.map(lambda x: x[:, None, :], key))
    past = k.index <= q.index
    if two_way:
        past |= (q.group == k.group) & (q.group > 0)
    if window:
        past &= q.position - k.position < window
    branch = (q.branch == k.branch) | ((k.branch == 0) & (q.branch > 0))
    return past & branch & (q.segment == k.segment) & (q.segment > 0)


Angles = tuple[jax.Array, jax.Array]  # cos and sin [B, T, H/2]


def rope_frequencies(head_dim: int, base: float, fraction: float) -> jax.Array:
    """float32 [H/2]: base^(-2i/H), and 0 beyond `fraction` of the pairs (Su et al. 2021; Gemma)."""
    half = head_dim // 2
    frequency = base ** (-2.0 * jnp.arange(half) / head_dim)
    return jnp.where(jnp.arange(half) < int(half * fraction), frequency, 0.0)


def rope_angles(position: jax.Array, head_dim: int, base: float, fraction: float) -> Angles:
    """cos and sin [B, T, H/2] of position * frequency."""
    angle = position[..., None].astype(jnp.float32) * rope_frequencies(head_dim, base, fraction)
    return jnp.cos(angle), jnp.sin(angle)


def rope_kind(a: AttentionConfig) -> tuple[int, float, float]:
    """What the angles of a layer depend on besides the positions."""
    return a.head_dim, a.rope_base, a.rope_fraction


def rotate(x_BTNH: jax.Array, angles: Angles) -> jax.Array:
    """Rotate the pairs (x_i, x_{i + H/2}) of each head."""
    cos, sin = (a[:, :, None, :].astype(x_BTNH.dtype) for a in angles)
    first, second = jnp.split(x_BTNH, 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def log_n_scale(position: jax.Array, native: int) -> jax.Array:
    """max(1, log n / log native) with n = position + 1 visible tokens: keeps attention sharp beyond the native length."""
    return jnp.maximum(1.0, jnp.log(position.astype(jnp.float32) + 1.0) / math.log(native))


def project(params: Params, a: AttentionConfig, x_BTD: jax.Array, position_BT: jax.Array, angles: Angles | None, eps: float):
    """Queries [B, T, N, H], keys and values [B, T, K, H], normalised, rotated and scaled; None for keys and values that are shared."""
    names = ("q",) if a.shares_kv else ("q", "k") if a.values_reuse_keys else ("q", "k", "v")
    linear = {
        name: (y + params[f"{name}_bias"].astype(y.dtype) if a.bias else y).reshape(*x_BTD.shape[:-1], -1, a.head_dim)
        for name, y in zip(names, matmuls(x_BTD, *(params[name] for name in names)), strict=True)
    }

    def place(x: jax.Array, scale: str) -> jax.Array:
        x = rms_norm(x, params[scale], eps) if a.qk_norm else x
        return x if angles is None else rotate(x, angles)

    q = place(linear["q"], "q_norm")
    if a.log_n_native:
        q *= log_n_scale(position_BT, a.log_n_native)[..., None, None].astype(q.dtype)
    if a.shares_kv:
        return q, None, None
    k = linear["k"]
    v = linear.get("v", k)
    return q, place(k, "k_norm"), rms_norm(v, None, eps) if a.value_norm else v


def gaussian_prior(log_sigma_N: jax.Array, query: jax.Array, key: jax.Array) -> jax.Array:
    """-(i - j)^2 / (2 sigma_h^2), float32 [B, N, T, S]; the normalising constant cancels in the softmax."""
    distance = (query[:, :, None] - key[:, None, :]).astype(jnp.float32)
    return -(distance[:, None] ** 2) / (2 * jnp.exp(2 * log_sigma_N.astype(jnp.float32)))[None, :, None, None]


def output(params: Params, a: AttentionConfig, x_BTNH: jax.Array) -> jax.Array:
    y = matmul(x_BTNH.reshape(*x_BTNH.shape[:2], -1), params["o"])
    return y + params["o_bias"].astype(y.dtype) if a.bias else y


@dataclass(frozen=True)
class Sight:
    """What is true of all layers of a kind: who sees whom, [B, T, S] from additive_mask, and where the keys are, [B, S]."""

    mask: jax.Array
    position: jax.Array


@dataclass(frozen=True)
class KeysValues:
    """Keys and values [B, S, K, H] of a layer, or what they are taken from: layer `index` of a stack, and pages [N, P, K, H] by a table
    [B, M]."""

    k: jax.Array | Rounded
    v: jax.Array | Rounded
    index: jax.Array | None = None
    table: jax.Array | None = None


def self_attention(
    params: Params,
    a: AttentionConfig,
    x_BTD: jax.Array,
    positions: Positions,
    angles: Angles | None,
    sight: Sight,
    eps: float,
    cache: Any = None,
    shared: KeysValues | None = None,
) -> tuple[jax.Array, Any, KeysValues]:
    """One self-attention sub-block. `angles` rotate queries and keys. With a cache (model/cache.py) the keys are those of the cache; with
    `shared`, they are those of another layer and there is no cache.

    Returns the output [B, T, D], the updated cache, and the keys and values.
    """
    q, k, v = project(params, a, x_BTD, positions.position, angles, eps)
    if shared is not None:
        seen = shared
    elif cache is not None:
        cache, seen = cache.extend(k, v, positions)
    else:
        seen = KeysValues(k, v)
    bias = gaussian_prior(params["log_sigma"], positions.position, sight.position) if a.gaussian_prior else None
    out = attend(q, seen.k, seen.v, sight.mask, a.scale or a.head_dim**-0.5, a.soft_cap, bias, seen.index, seen.table)
    return output(params, a, out), cache, seen
