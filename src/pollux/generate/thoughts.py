"""Thoughts of an answer, the spans between <thought> and </thought>: how many tokens they may have. constrained_thoughts.py says where they
stand in an answer that keeps to a constraint.

The number is kept on the device, so that it holds to the token however many tokens a dispatch writes: the engine keeps one integer a row,
`thinking`: twice the tokens that thoughts may still have, their markers counted, plus one while a thought is open. What is left is at
last the closing marker. Used under jit.
Shapes: B rows, V vocabulary of the model.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pollux.generate.grammar import Grammar

UNLIMITED = 2**29


def before(most: int | None) -> int:
    """The state of a row that has written nothing; None: as many tokens as the model likes."""
    return 2 * (UNLIMITED if most is None else min(most, UNLIMITED))


def allowed(grammar: Grammar, thinking: jax.Array) -> jax.Array:
    """bool [B, V] of the state int32 [B]: a thought is opened only if it can be closed, too."""
    ids = jnp.arange(grammar.outside.shape[0])
    left, is_open = thinking >> 1, thinking & 1 == 1
    last = (is_open & (left <= 1))[:, None]
    may_open = (is_open | (left > 1))[:, None]
    return jnp.where(last, ids == grammar.end_thought, may_open | (ids != grammar.thought))


def follow(grammar: Grammar, thinking: jax.Array, ids: jax.Array) -> jax.Array:
    """The state int32 [B] after ids int32 [B] were written."""
    within = (thinking & 1 == 1) | (ids == grammar.thought)
    left = (thinking >> 1) - within
    return 2 * left + (within & (ids != grammar.end_thought))
