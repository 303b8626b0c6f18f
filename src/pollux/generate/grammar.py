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

from pollux.tokens.vocabulary import Vocabulary

WRITTEN = ("<eos>", "<end_of_turn>", "<call>", "</call>")  # special tokens that a model writes; the others open inputs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grammar:
    outside: Any  # bool [V], allowed outside a drawing
    low: Any  # int32 [S], inside a drawing the ids low <= id < high are allowed
    high: Any
    first_code: Any  # int32 scalar, all code ids are at or above it
    stops: Any  # int32 [n], ids that end an answer
    draw: Any  # int32 scalars, ids that open and close a drawing; -1 where there are none
    end_draw: Any
    thought: Any  # int32 scalars, ids that open and close a thought (thoughts.py); -1 where there are none
    end_thought: Any

    def allowed(self, drawing: jax.Array) -> jax.Array:
        """bool [B, V] of the state int32 [B]."""
        ids = jnp.arange(self.outside.shape[0])
        inside = (ids >= self.low[drawing][:, None]) & (ids < self.high[drawing][:, None])
        return jnp.where(drawing[:, None] > 0, inside, self.outside)

    def follow(self, drawing: jax.Array, ids: jax.Array) -> jax.Array:
        """The state int32 [B] after ids int32 [B] were written."""
        opened = (ids == self.draw).astype(jnp.int32)
        return jnp.where(drawing == 0, opened, jnp.where(ids == self.end_draw, 0, drawing + 1))


def grammar(vocabulary: Vocabulary, vocab_size: int, num_codes: int) -> Grammar:
    """num_codes: codes of one picture, 0 for a model that does not draw. vocab_size: V of the model, at least that of the vocabulary.

    A model with a chat template of its own may write any id, as its makers let it.
    """
    specials, codes = vocabulary.specials, np.int32(vocabulary.code_offset)
    draw, closing = specials.get("<draw>", -1), specials.get("</draw>", -1)
    outside = np.full(vocab_size, vocabulary.template is not None)
    if vocabulary.template is None:
        outside[: vocabulary.code_offset] = True
        outside[list(vocabulary.special_ids)] = False
        outside[[specials[name] for name in WRITTEN]] = True
        outside[draw] = num_codes > 0
    else:
        codes = np.int32(vocab_size)
    bounds = vocabulary.code_offset + np.cumsum((0, *vocabulary.code_levels))
    low = np.array([0, *np.tile(bounds[:-1], num_codes), closing], np.int32)
    high = np.array([0, *np.tile(bounds[1:], num_codes), closing + 1], np.int32)
    stops = np.array(vocabulary.stops, np.int32)
    thought, end_thought = (np.int32(specials.get(name, -1)) for name in ("<thought>", "</thought>"))
    return Grammar(outside, low, high, codes, stops, np.int32(draw), np.int32(closing), thought, end_thought)
