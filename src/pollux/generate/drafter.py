"""What proposes the next tokens in speculation: earlier text that began alike, or a smaller model.

A drafter is what stays the same from round to round; its memory is what changes, and lives beside the State of the target. Wrong drafts
cost time, never correctness: generate/speculate.py checks them.
Shapes: B rows, G tokens drafted at most, L slots of the history, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from pollux.generate.decode import State, cache_dtype
from pollux.generate.grammar import Grammar
from pollux.generate.sampler import SamplerState, advance, most_probable, probabilities
from pollux.model.cache import Cache
from pollux.model.config import ModelConfig
from pollux.model.decoder import hidden, logits
from pollux.model.params import Params
from pollux.tokens.sequence import Inputs

Array = Any  # numpy.ndarray or jax.Array
SHORTEST_MATCH, LONGEST_MATCH = 2, 3  # tokens that must be alike, and that are compared: more of them alike is a better match
UNKNOWN = -1  # a slot of the history that holds no token


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Draft:
    ids: Array  # int32 [B, G], what may follow the pending token
    number: Array  # int32 [B], how many of them are meant
    probs: Array | None  # float32 [B, G, V] that they were drawn from; None: they were not drawn at random


def key(seed: Array, drawn: Array, purpose: int) -> Array:
    """The random key of a purpose (draft, acceptance, replacement) for the token of this number in the row with this seed."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), drawn), purpose)


def draw(weights: Array, sampler: SamplerState, purpose: int) -> Array:
    """int32 [B], one id a row with probability proportional to weights float32 [B, V]."""

    def gumbel(seed, drawn):
        return jax.random.gumbel(key(seed, drawn, purpose), weights.shape[1:])

    return most_probable(jnp.log(weights) + jax.vmap(gumbel)(sampler.seed, sampler.drawn))


def append(x_BL: Array, length: Array, new_BT: Array, number: Array) -> Array:
    """x whose row b, of which `length` int32 [B] slots are used, goes on with the first `number` int32 [B] of new."""
    step = jnp.arange(x_BL.shape[1]) - length[:, None]
    added = jnp.take_along_axis(new_BT, jnp.clip(step, 0, new_BT.shape[1] - 1), 1)
    return jnp.where((step >= 0) & (step < number[:, None]), added, x_BL)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LookUp:
    """Prompt look-up: what followed the last few tokens when they occurred before, in the prompt or in the answer (Saxena 2023)."""

    length: int = field(default=4, metadata={"static": True})  # G
    abstains: ClassVar[bool] = True  # often proposes nothing; then a pass over one token is faster

    def history(self, rows: Sequence[np.ndarray], longest: int) -> np.ndarray:
        """The history int32 [B, L] of rows that were read and written so far, and become at most `longest` tokens long."""
        history = np.full((len(rows), longest), UNKNOWN, np.int32)
        for known, ids in zip(history, rows, strict=True):
            known[: len(ids)] = ids
        return history

    def draft(self, history: Array, grammar: Grammar, state: State, number: Array) -> tuple[Array, Draft]:
        """At most `number` int32 [B] tokens: those after the longest and then latest match, repeated if they reach the end."""
        rows, slots = history.shape
        last, slot = state.position[:, None], jnp.arange(slots)
        alike, matched = slot < last, jnp.zeros((rows, slots), jnp.int32)
        for back in range(LONGEST_MATCH):
            before = jnp.pad(history, ((0, 0), (back, 0)), constant_values=UNKNOWN)[:, :slots]
            own = jnp.take_along_axis(history, jnp.maximum(last - back, 0), 1)
            alike &= (before == own) & (before != UNKNOWN)
            matched += alike
        found = jnp.argmax(matched * slots + slot, -1)[:, None]
        step = jnp.arange(self.length) % jnp.maximum(last - found, 1)
        known = jnp.take_along_axis(matched, found, 1)[:, 0] >= SHORTEST_MATCH
        return history, Draft(jnp.take_along_axis(history, found + 1 + step, 1), jnp.where(known, number, 0), None)

    def follow(self, history: Array, draft: Draft, state: State, ids: Array, kept: Array) -> Array:
        """The history after the first `kept` int32 [B] of ids [B, G + 1] were written; state: before the round."""
        return append(history, state.position + 1, ids, kept)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DraftMemory:
    cache: Cache
    before: Array  # int32 [B], the token before the pending one
    behind: Array  # int32 [B], 1 where the cache lacks it: a draft that was accepted whole ends with a token that was never fed


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DraftModel:
    """A smaller model with the same vocabulary, which draws as the target does: same settings, same grammar."""

    params: Params
    config: ModelConfig = field(metadata={"static": True})
    length: int = field(default=4, metadata={"static": True})  # G
    abstains: ClassVar[bool] = False

    def draft(self, memory: DraftMemory, grammar: Grammar, state: State, number: Array) -> tuple[DraftMemory, Draft]:
        """`number` int32 [B] tokens, each drawn as the target would draw it if it were the draft."""
        behind, active = memory.behind, number > 0
        first = jnp.where(behind > 0, memory.before, state.token)
        read = jnp.stack([active, active & (behind > 0)], 1)
        cache, states = self._feed(memory.cache, jnp.stack([first, state.token], 1), state.position - behind, read)
        newest = jnp.take_along_axis(states, behind[:, None, None], 1)[:, 0]

        def choose(newest, sampler, drawing):
            scores = jnp.where(grammar.allowed(drawing), logits(self.params, self.config, newest), -jnp.inf)
            probs = probabilities(scores, sampler)
            ids = draw(probs, sampler, 0)
            return ids, probs, advance(sampler, ids, ids < grammar.first_code), grammar.follow(drawing, ids)

        def step(carry, i):
            cache, newest, sampler, drawing = carry
            ids, probs, sampler, drawing = choose(newest, sampler, drawing)
            cache, states = self._feed(cache, ids[:, None], state.position + 1 + i, (i + 1 < number)[:, None])
            return (cache, states[:, 0], sampler, drawing), (ids, probs)

        (cache, *now), earlier = jax.lax.scan(step, (cache, newest, state.sampler, state.drawing), jnp.arange(self.length - 1))
        final = choose(*now)[:2]
        ids, probs = jax.tree.map(lambda some, one: jnp.concatenate([some, one[None]]).swapaxes(0, 1), earlier, final)
        return replace(memory, cache=cache), Draft(ids, number, probs)

    def follow(self, memory: DraftMemory, draft: Draft, state: State, ids: Array, kept: Array) -> DraftMemory:
        """The memory after the first `kept` int32 [B] of ids [B, G + 1] were written; state: before the round."""
        both = jnp.concatenate([state.token[:, None], ids], 1)
        before = jnp.take_along_axis(both, jnp.maximum(kept - 1, 0)[:, None], 1)[:, 0]
        return replace(memory, before=before, behind=jnp.maximum(kept - draft.number, 0))

    def _feed(self, cache: Cache, ids_BT: Array, position: Array, read_BT: Array) -> tuple[Cache, Array]:
        """Feed tokens from `position` int32 [B] on; returns the cache and hidden states [B, T, D]."""
        zero = jnp.zeros_like(ids_BT)
        position = position[:, None] + jnp.arange(ids_BT.shape[1])
        inputs = Inputs(ids_BT, position, read_BT.astype(jnp.int32), zero, zero, {})
        out = hidden(self.params, self.config, inputs, cache, cache_dtype(self.params))
        assert out.cache is not None
        return out.cache, out.hidden


Drafter = LookUp | DraftModel
