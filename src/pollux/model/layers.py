"""Norms, activations and feed-forward: functions f(params, config, x).

Shapes: B rows, T tokens, D model, F feed-forward.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pollux.model.config import FeedForwardConfig, ModelConfig
from pollux.model.matmul import matmul, matmuls
from pollux.model.spec import Params


def rms_norm(x: jax.Array, scale: jax.Array | None, eps: float) -> jax.Array:
    """gamma * x / sqrt(mean(x^2) + eps) over the last axis, computed in float32 (Zhang & Sennrich 2019)."""
    x32 = x.astype(jnp.float32)
    y = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)
    return (y if scale is None else y * scale.astype(jnp.float32)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """gamma * (x - mean) / sqrt(var + eps) + beta over the last axis, computed in float32 (Ba et al. 2016)."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, -1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def norm(params: Params, config: ModelConfig, x: jax.Array) -> jax.Array:
    if config.norm == "layer":
        return layer_norm(x, params["scale"], params["bias"], config.norm_eps)
    return rms_norm(x, params["scale"], config.norm_eps)


def activation(name: str, x: jax.Array) -> jax.Array:
    if name == "gelu":
        return jax.nn.gelu(x, approximate=True)
    if name == "silu":
        return jax.nn.silu(x)
    relu = jax.nn.relu(x)
    return relu * relu if name == "relu2" else relu


def feed_forward(params: Params, config: FeedForwardConfig, x_BTD: jax.Array) -> jax.Array:
    """act(x gate) * (x up) down, or act(x up + b1) down + b2 without the gate (Shazeer 2020; Vaswani et al. 2017)."""
    up_BTF, *gate_BTF = matmuls(x_BTD, params["up"], *([params["gate"]] if config.gated else []))
    if config.bias:
        up_BTF += params["up_bias"].astype(up_BTF.dtype)
    hidden_BTF = activation(config.activation, gate_BTF[0]) * up_BTF if config.gated else activation(config.activation, up_BTF)
    out_BTD = matmul(hidden_BTF, params["down"])
    return out_BTD + params["down_bias"].astype(out_BTD.dtype) if config.bias else out_BTD


def sinusoids(position: jax.Array, d_model: int) -> jax.Array:
    """PE(p, 2i) = sin(p / 10000^(2i/d)), PE(p, 2i+1) = cos(same) (Vaswani et al. 2017). position [...] -> [..., d_model]."""
    frequency = 10_000.0 ** (-jnp.arange(0, d_model, 2) / d_model)
    angle = position[..., None].astype(jnp.float32) * frequency
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1).reshape(*position.shape, -1)[..., :d_model]
