"""The one product of activations with a weight: compute types, and a gradient laid out so that the CPU backend is fast.

XLA's CPU backend prefers to transpose both operands of the weight gradient x^T g, which costs more than the product itself.
Contracting rows and tokens as two dimensions, behind a barrier that keeps the transposes from being fused in, avoids it.
Shapes: x [..., K], w [K, N] -> [..., N].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """x @ w in x's dtype with float32 accumulation."""
    return _product(x, w.astype(x.dtype))


def _dot(a: jax.Array, b: jax.Array, contract_b: int) -> jax.Array:
    dims = (((a.ndim - 1,), (contract_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32).astype(a.dtype)


@jax.custom_vjp
def _product(x, w):
    return _dot(x, w, 0)


def _product_forward(x, w):
    return _product(x, w), (x, w)


def _product_backward(residual, g):
    x, w = residual
    x_BTK, g_BTN = jax.lax.optimization_barrier((x.reshape(-1, *x.shape[-2:]), g.reshape(-1, *g.shape[-2:])))
    d_w = jnp.einsum("btk,btn->kn", x_BTK, g_BTN, preferred_element_type=jnp.float32)
    return _dot(g, w, 1), jax.lax.optimization_barrier(d_w).astype(w.dtype)


_product.defvjp(_product_forward, _product_backward)
