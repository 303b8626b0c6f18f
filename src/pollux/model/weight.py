"""What may stand in the parameter tree where a matrix is expected: anything that knows its product."""

from __future__ import annotations

import abc

import jax


class Weight(abc.ABC):
    """A matrix [K, N] that is not a plain array: a registered dataclass, so a node of the parameter tree."""

    @abc.abstractmethod
    def product(self, x: jax.Array) -> jax.Array:
        """x [..., K] -> [..., N] in x's dtype."""

    @abc.abstractmethod
    def dense(self, dtype) -> jax.Array:
        """The values [..., K, N]."""
