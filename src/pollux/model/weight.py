"""What may stand in the parameter tree where a matrix is expected: anything that knows its product."""

from __future__ import annotations

import abc
from typing import Self

import jax


class Weight(abc.ABC):
    """A matrix [K, N] that is not a plain array: a registered dataclass, so a node of the parameter tree."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """That of the values [..., K, N]."""

    @abc.abstractmethod
    def product(self, x: jax.Array) -> jax.Array:
        """x [..., K] -> [..., N] in x's dtype."""

    @abc.abstractmethod
    def dense(self, dtype) -> jax.Array:
        """The values [..., K, N]."""


class Stacked(Weight):
    """A weight that is not cut into layers by the scan over them, which would copy each layer's part, but looked into by number."""

    @abc.abstractmethod
    def layer(self, index: jax.Array) -> Self:
        """Member `index` of the stack."""

    @abc.abstractmethod
    def rows(self, ids: jax.Array, dtype) -> jax.Array:
        """Rows of the embedding table that this is the transpose of: ids int [...] -> [..., K]."""
