"""The one product of activations with a weight: kinds of weights, compute types, and what the backward pass keeps.

Shapes: x [..., K], w [K, N] -> [..., N].
"""

from __future__ import annotations

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


@jax.custom_vjp
def _product(x, w):
    return _dot(x, w.astype(x.dtype), 0)


def _product_forward(x, w):
    return _product(x, w), (x, w)  # w as it is stored: cast, it would be a copy of all layers that waits for the backward pass


def _product_backward(residual, g):
    x, w = residual
    d_w = jnp.einsum("...k,...n->kn", x, g, preferred_element_type=jnp.float32)
    return _dot(g, w.astype(g.dtype), 1), d_w.astype(w.dtype)


_product.defvjp(_product_forward, _product_backward)
