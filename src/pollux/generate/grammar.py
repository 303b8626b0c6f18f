"""Which ids may come next: text and the openings of spans outside a drawing, exactly the right digit of an image code inside one.

The engine keeps one integer a row, `drawing`: 0 outside, n + 1 after n digits of an open picture. Used under jit.
Shapes: B rows, V vocabulary, S = digits of a picture + 2 states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pollux.tokens.vocabulary import SPECIAL_IDS, SPECIALS, Vocabulary

WRITTEN = ("<eos>", "<end_of_turn>", "<call>", "</call>")  # special tokens that a model writes; the others open inputs
STOPS = (SPECIAL_IDS["<eos>"], SPECIAL_IDS["<end_of_turn>"])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grammar:
    outside: Any  # bool [V], allowed outside a drawing
    low: Any  # int32 [S], inside a drawing the ids low <= id < high are allowed
    high: Any
    first_code: Any  # int32 scalar, all code ids are at or above it

    def allowed(self, drawing: jax.Array) -> jax.Array:
        """bool [B, V] of the state int32 [B]."""
        ids = jnp.arange(self.outside.shape[0])
        inside = (ids >= self.low[drawing][:, None]) & (ids < self.high[drawing][:, None])
        return jnp.where(drawing[:, None] > 0, inside, self.outside)

    def follow(self, drawing: jax.Array, ids: jax.Array) -> jax.Array:
        """The state int32 [B] after ids int32 [B] were written."""
        opened = (ids == SPECIAL_IDS["<draw>"]).astype(jnp.int32)
        return jnp.where(drawing == 0, opened, jnp.where(ids == SPECIAL_IDS["</draw>"], 0, drawing + 1))


def grammar(vocabulary: Vocabulary, vocab_size: int, num_codes: int) -> Grammar:
    """num_codes: codes of one picture, 0 for a model that does not draw. vocab_size: V of the model, at least that of the vocabulary."""
    outside = np.zeros(vocab_size, bool)
    outside[len(SPECIALS) : vocabulary.code_offset] = True
    outside[[SPECIAL_IDS[name] for name in WRITTEN]] = True
    outside[SPECIAL_IDS["<draw>"]] = num_codes > 0
    bounds = vocabulary.code_offset + np.cumsum((0, *vocabulary.code_levels))
    closing = SPECIAL_IDS["</draw>"]
    low = [0, *np.tile(bounds[:-1], num_codes), closing]
    high = [0, *np.tile(bounds[1:], num_codes), closing + 1]
    return Grammar(outside, np.array(low, np.int32), np.array(high, np.int32), np.int32(vocabulary.code_offset))
