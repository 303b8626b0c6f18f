"""The one product of activations with a weight: kinds of weights, compute types, and a gradient laid out so that the CPU backend is fast.

XLA's CPU backend transposes both operands of the weight gradient x^T g, and walks them against their layout, which costs more than the
product itself. One product per row, g^T x, whose operands stay small, and the sum over rows afterwards avoid it; the barriers keep
XLA from fusing them into one product again.
Shapes: x [..., K], w [K, N] -> [..., N].
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pollux.model.quantized import Quantized, products
from pollux.model.weight import Weight


def matmul(x: jax.Array, w: jax.Array | Weight) -> jax.Array:
    """x @ w in x's dtype with float32 accumulation."""
    return w.product(x) if isinstance(w, Weight) else _product(x, w)


def matmuls(x: jax.Array, *weights: jax.Array | Weight) -> tuple[jax.Array, ...]:
    """x times several weights; quantised ones in one go."""
    quantized = [w for w in weights if isinstance(w, Quantized)]
    if len(quantized) == len(weights) and len({w.bits for w in quantized}) == 1:
        return products(x, quantized)
    return tuple(matmul(x, w) for w in weights)


def _dot(a: jax.Array, b: jax.Array, contract_b: int) -> jax.Array:
    dims = (((a.ndim - 1,), (contract_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32).astype(a.dtype)


def _sum(x_BNK: jax.Array) -> jax.Array:
    """Sum over the first axis; a chain of additions, up to a few, is one pass where a reduction is several."""
    return functools.reduce(jnp.add, x_BNK) if len(x_BNK) <= 16 else jnp.sum(x_BNK, 0)


@jax.custom_vjp
def _product(x, w):
    return _dot(x, w.astype(x.dtype), 0)


def _product_forward(x, w):
    return _product(x, w), (x, w)  # w as it is stored: cast, it would be a copy of all layers that waits for the backward pass


def _product_backward(residual, g):
    x, w = residual
    x_BTK, g_BTN = x.reshape(-1, *x.shape[-2:]), g.reshape(-1, *g.shape[-2:])
    if jax.default_backend() == "cpu":
        x_BTK, g_BTN = jax.lax.optimization_barrier((x_BTK, g_BTN))
        d_w_BNK = jax.lax.optimization_barrier(jnp.einsum("btn,btk->bnk", g_BTN, x_BTK, preferred_element_type=jnp.float32))
        d_w = _sum(d_w_BNK).T
    else:
        d_w = jnp.einsum("btk,btn->kn", x_BTK, g_BTN, preferred_element_type=jnp.float32)
    return _dot(g, w.astype(g.dtype), 1), d_w.astype(w.dtype)


_product.defvjp(_product_forward, _product_backward)
