"""The compiled half of generation: prefill a cache with prompts, then feed and draw one token a row and step.

A dispatch runs up to CHUNK steps on the device, so that Python costs little. The last token of a prompt is not prefilled but fed by
the first step; hence every step is the same: feed a token, read logits, draw the next one.

Guidance. A guided batch has a second half of rows that see `<bos><model>` and, of the answer, only the drawings: what the model would
draw for no prompt at all. Inside a drawing the logits are unconditional + guidance * (conditional - unconditional) (Ho & Salimans 2022).
It works for a model that was trained with the prompts of some drawing documents dropped.

Shapes: B rows, R = B or 2 B rows of the cache, T tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pollux.generate.grammar import Grammar
from pollux.generate.sampler import SamplerState, advance, sample
from pollux.model.cache import Cache, CacheDtype, empty
from pollux.model.config import ModelConfig
from pollux.model.decoder import hidden, logits
from pollux.model.params import Params
from pollux.model.weight import Weight
from pollux.tokens.sequence import Inputs

Array = Any  # numpy.ndarray or jax.Array
CHUNK = 16  # most steps a dispatch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    cache: Cache  # R rows
    sampler: SamplerState
    token: Array  # int32 [B], to be fed next
    position: Array  # int32 [R], where it goes; unconditional rows count their own
    drawing: Array  # int32 [B], see grammar.py
    left: Array  # int32 [B], tokens still to draw; 0 = the row has ended
    guidance: Array  # float32 [B, 1]


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def prefill(params: Params, config: ModelConfig, inputs: Inputs, cache: Cache) -> Cache:
    filled = hidden(params, config, inputs, cache, cache_dtype(params)).cache
    assert filled is not None
    return filled


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("state",))
def decode(params: Params, config: ModelConfig, grammar: Grammar, state: State, ended: Array, steps: Array) -> tuple[State, Array, Array]:
    """Up to `steps` <= CHUNK steps, fewer if all rows end. `ended` bool [B]: rows that the caller ended since the last call.

    Returns the state, ids int32 [B, CHUNK] (-1 where a row drew nothing) and their log-probabilities float32 [B, CHUNK].
    """
    rows = state.token.shape[0]
    state = replace(state, left=jnp.where(ended, 0, state.left))

    def running(carry):
        step, state, _, _ = carry
        return (step < steps) & jnp.any(state.left > 0)

    def body(carry):
        step, state, ids, logprobs = carry
        active = state.left > 0
        state, scores = _feed(params, config, grammar, state, active)
        scores = jnp.where(grammar.allowed(state.drawing), scores, -jnp.inf)
        drawn, logprob = sample(scores, state.sampler)
        left = jnp.where(active, state.left - 1, 0)
        left = jnp.where(jnp.isin(drawn, grammar.stops), 0, left)
        state = replace(
            state,
            sampler=advance(state.sampler, drawn, active & (drawn < grammar.first_code)),
            token=drawn,
            drawing=jnp.where(active, grammar.follow(state.drawing, drawn), state.drawing),
            left=left,
        )
        ids = ids.at[:, step].set(jnp.where(active, drawn, -1))
        return step + 1, state, ids, logprobs.at[:, step].set(logprob)

    start = (jnp.int32(0), state, jnp.full((rows, CHUNK), -1, jnp.int32), jnp.zeros((rows, CHUNK), jnp.float32))
    _, state, ids, logprobs = jax.lax.while_loop(running, body, start)
    return state, ids, logprobs


def _feed(params: Params, config: ModelConfig, grammar: Grammar, state: State, active: Array) -> tuple[State, Array]:
    """Feed the pending token of the active rows; returns the state and float32 logits [B, V] of what follows."""
    rows, guided = active.shape[0], state.position.shape[0] > active.shape[0]
    token, fed = state.token, active
    if guided:
        in_drawing = (state.drawing > 0) | (state.token == grammar.end_draw)
        token, fed = jnp.tile(token, 2), jnp.concatenate([active, active & in_drawing])
    column = fed.astype(jnp.int32)[:, None]
    zero = jnp.zeros_like(column)
    inputs = Inputs(token[:, None], state.position[:, None], column, zero, zero, {})
    out = hidden(params, config, inputs, state.cache, cache_dtype(params))
    assert out.cache is not None
    scores = logits(params, config, out.hidden[:, 0])
    if guided:
        conditional, unconditional = scores[:rows], scores[rows:]
        mixed = unconditional + state.guidance * (conditional - unconditional)
        scores = jnp.where(state.drawing[:, None] > 0, mixed, conditional)
    return replace(state, cache=out.cache, position=state.position + column[:, 0]), scores


def filled(
    params: Params, config: ModelConfig, inputs: Inputs, slots: int, spare: int = 0, kv_cache_dtype: CacheDtype | None = None
) -> Cache:
    """A cache with room for `slots` tokens a row that holds `inputs`; the last `spare` tokens of a row may be taken back.

    kv_cache_dtype: as in `empty`."""
    crosses = any(layer.cross_attention for layer in config.layers)
    soft_slots = sum(soft.index.shape[1] for soft in inputs.soft.values()) or 1
    cache = empty(config, len(inputs.ids), slots, cache_dtype(params), soft_slots if crosses else 0, spare, kv_cache_dtype)
    return prefill(params, config, inputs, cache)


@functools.partial(jax.jit, static_argnames=("config", "slots", "spare"))
def grow(config: ModelConfig, cache: Cache, slots: int, spare: int = 0) -> Cache:
    """The same cache with room for `slots` tokens a row. Until a ring is full its slots are positions, so it grows like the others."""
    rows, soft_slots = cache.soft.shape[:2]
    larger = jax.eval_shape(lambda: empty(config, rows, slots, cache.soft.dtype, soft_slots, spare, cache.kv_cache_dtype))
    leaves = [
        jnp.pad(old, [(0, new - now) for now, new in zip(old.shape, target.shape, strict=True)])
        for old, target in zip(jax.tree.leaves(cache), jax.tree.leaves(larger), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(larger), leaves)


def cache_dtype(params: Params) -> np.dtype:
    """Activations and cache have the dtype of the embedding; of a quantised one, that of the norms."""
    embed = params["embed"]
    return (params["final_norm"]["scale"] if isinstance(embed, Weight) else embed).dtype
