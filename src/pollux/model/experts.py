"""Mixture of experts: top-k routing without dropped tokens, and the loss that keeps the experts in balance.

Shapes: S tokens (rows flattened), D model, E experts, k chosen experts, F feed-forward.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pollux.model.config import ExpertsConfig
from pollux.model.layers import activation, rms_norm
from pollux.model.spec import Params
from pollux.model.weight import Stacked


def route(router_DE: jax.Array, x_SD: jax.Array, top_k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights [S, k] that sum to 1, expert ids [S, k], and all probabilities float32 [S, E]."""
    logits = jnp.matmul(x_SD.astype(jnp.float32), router_DE.astype(jnp.float32))
    probabilities = jax.nn.softmax(logits, -1)
    weights, chosen = jax.lax.top_k(probabilities, top_k)
    return weights / jnp.sum(weights, -1, keepdims=True), chosen, probabilities


def balance_loss(probabilities_SE: jax.Array, chosen_Sk: jax.Array, valid_S: jax.Array) -> jax.Array:
    """E * sum_e f_e p_e: f the share of choices that went to e, p its mean probability; 1 when even (Fedus et al. 2021)."""
    num_experts = probabilities_SE.shape[-1]
    weight = valid_S.astype(jnp.float32)
    total = jnp.maximum(jnp.sum(weight), 1.0)
    share = jnp.sum(jax.nn.one_hot(chosen_Sk, num_experts) * weight[:, None, None], (0, 1)) / (total * chosen_Sk.shape[-1])
    mean = jnp.sum(probabilities_SE * weight[:, None], 0) / total
    return num_experts * jnp.sum(share * mean)


def separate_experts(
    params: Params, config: ExpertsConfig, x_BTD: jax.Array, dense_BTD: jax.Array, valid_BT: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array]:
    """Gemma 4's block: both branches normalised before they are added, the routed one fed from the residual stream x.

    dense_BTD: output of the dense branch. Returns the sum [B, T, D] and the balance loss.
    """
    routed, balance = experts(params, config, rms_norm(x_BTD, params["pre_norm"], eps), valid_BT, x_BTD, eps)
    return rms_norm(dense_BTD, params["dense_post_norm"], eps) + rms_norm(routed, params["post_norm"], eps), balance


def experts(
    params: Params, config: ExpertsConfig, x_BTD: jax.Array, valid_BT: jax.Array, residual_BTD: jax.Array | None = None, eps: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of the chosen experts' gated feed-forwards [B, T, D], and the balance loss (scalar).

    Every token reaches all its experts: the (token, expert) pairs are sorted by expert and multiplied in ragged groups.
    residual_BTD: what a router with a norm and scales of its own (Gemma 4) reads; without it, the router reads x.
    """
    B, T, D = x_BTD.shape
    x_SD = x_BTD.reshape(-1, D)
    if residual_BTD is None:
        weights, chosen, probabilities = route(params["router"], x_SD, config.top_k)
    else:
        scaled = rms_norm(residual_BTD.reshape(-1, D), params["router_scale"], eps) * jnp.asarray(D**-0.5, x_BTD.dtype)
        weights, chosen, probabilities = route(params["router"], scaled, config.top_k)
        weights *= params["expert_scale"].astype(jnp.float32)[chosen]
    order = jnp.argsort(chosen.reshape(-1), stable=True)
    sizes = jnp.bincount(chosen.reshape(-1), length=config.num_experts).astype(jnp.int32)
    token = order // config.top_k
    sorted_x = x_SD[token]

    def product(a, name):
        w = params[name]
        return jax.lax.ragged_dot(a, w.dense(a.dtype) if isinstance(w, Stacked) else w.astype(a.dtype), sizes)

    hidden = activation(config.activation, product(sorted_x, "gate")) * product(sorted_x, "up")
    y = product(hidden, "down") * weights.reshape(-1)[order][:, None].astype(x_BTD.dtype)
    out = jnp.zeros_like(x_SD).at[token].add(y.astype(x_BTD.dtype))
    return out.reshape(B, T, D), balance_loss(probabilities, chosen, valid_BT.reshape(-1) > 0)
