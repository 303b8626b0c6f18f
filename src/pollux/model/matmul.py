"""The one product of activations with a weight. It knows compute types, and how the CPU backend wants a gradient laid out.

Shapes: x [..., K], w [K, N] -> [..., N].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """x @ w in x's dtype with float32 accumulation."""
    return jnp.matmul(x, w.astype(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)
