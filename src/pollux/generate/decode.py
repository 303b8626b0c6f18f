"""The compiled half of generation: prefill a cache with prompts, then feed and draw one token a row and step.

A dispatch runs up to CHUNK steps on the device, so that Python costs little. The last token of a prompt is not prefilled but fed by
the first step; hence every step is the same: feed a token, read logits, draw the next one. What a dispatch needs of a row besides the
cache is small, so the engine makes it anew whenever rows come or go.

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

from pollux.generate import thoughts
from pollux.generate.grammar import Grammar
from pollux.generate.sampler import SamplerState, advance, sample
from pollux.model.cache import Cache
from pollux.model.config import ModelConfig
from pollux.model.decoder import hidden, logits
from pollux.model.params import Params
from pollux.model.weight import Weight
from pollux.tokens.sequence import Inputs

Array = Any  # numpy.ndarray or jax.Array
CHUNK = 16  # most steps a dispatch
TOP = 20  # alternatives that are reported of a token, if any are


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    cache: Cache | None  # R rows; None while rows join, which leaves it alone
    sampler: SamplerState
    token: Array  # int32 [B], to be fed next
    position: Array  # int32 [R], where it goes; unconditional rows count their own
    drawing: Array  # int32 [B], see grammar.py
    thinking: Array  # int32 [B], see thoughts.py
    left: Array  # int32 [B], tokens still to draw; 0 = the row has ended
    guidance: Array  # float32 [B, 1]
    excluded: Array  # int32 [B, E], ids that a row must not write outside a drawing; V where there is none
    allowed: Array  # uint32 [B, V / 32], the ids that constraints leave, a bit each, for one step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Written:
    """What a dispatch wrote. Rows may write different numbers of tokens."""

    ids: Array  # int32 [B, n], -1 after what a row wrote
    logprobs: Array  # float32 [B, n]
    top_ids: Array  # int32 [B, n, TOP], best first
    top_logprobs: Array  # float32 [B, n, TOP]
    drawing: Array  # int32 [B], as in State, after it
    thinking: Array
    position: Array  # int32 [R]
    origins: Array | None = None  # int32 [B, n], see speculate.py


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def prefill(params: Params, config: ModelConfig, inputs: Inputs, cache: Cache) -> Cache:
    filled = hidden(params, config, inputs, cache, cache_dtype(params)).cache
    assert filled is not None
    return filled


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("state",))
def decode(
    params: Params, config: ModelConfig, grammar: Grammar, state: State, ended: Array, steps: Array, top: Array = False
) -> tuple[State, Written]:
    """Up to `steps` <= CHUNK steps, fewer if all rows end. `ended` bool [B]: rows that the caller ended since the last call.

    top: bool, whether to report the most probable ids of each step.
    """
    rows = state.token.shape[0]
    state = replace(state, left=jnp.where(ended, 0, state.left))

    def running(carry):
        step, state, _ = carry
        return (step < steps) & jnp.any(state.left > 0)

    def body(carry):
        step, state, columns = carry
        active = state.left > 0
        state, scores = _feed(params, config, grammar, state, active)
        scores = allowed_scores(grammar, state, scores)
        drawn, logprob = sample(scores, state.sampler)
        left = jnp.where(active, state.left - 1, 0)
        left = jnp.where(jnp.isin(drawn, grammar.stops), 0, left)
        state = replace(
            state,
            sampler=advance(state.sampler, drawn, active & (drawn < grammar.first_code)),
            token=jnp.where(active, drawn, state.token),
            drawing=jnp.where(active, grammar.follow(state.drawing, drawn), state.drawing),
            thinking=jnp.where(active, thoughts.follow(grammar, state.thinking, drawn), state.thinking),
            left=left,
        )
        now = jnp.where(active, drawn, -1), logprob, *jax.lax.cond(top, _most_probable, _none, scores)
        return step + 1, state, tuple(column.at[:, step].set(new) for column, new in zip(columns, now, strict=True))

    columns = (
        jnp.full((rows, CHUNK), -1, jnp.int32),
        jnp.zeros((rows, CHUNK), jnp.float32),
        jnp.zeros((rows, CHUNK, TOP), jnp.int32),
        jnp.zeros((rows, CHUNK, TOP), jnp.float32),
    )
    _, state, columns = jax.lax.while_loop(running, body, (jnp.int32(0), state, columns))
    return state, Written(*columns, state.drawing, state.thinking, state.position)


def allowed_scores(grammar: Grammar, state: State, scores: Array) -> Array:
    """Logits [B, V] with -inf for what may not come next."""
    scores = jnp.where(grammar.allowed(state.drawing) & thoughts.allowed(grammar, state.thinking), scores, -jnp.inf)
    bits = (state.allowed[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    left = bits.reshape(len(scores), -1)[:, : scores.shape[1]] > 0
    scores = jnp.where(left | (state.drawing > 0)[:, None], scores, -jnp.inf)
    return without(scores, state.drawing, state.excluded)


def without(scores: Array, drawing: Array, excluded: Array) -> Array:
    """Logits [B, V] with -inf for the excluded ids [B, E] of rows that do not draw, `drawing` int32 [B]."""
    excluded = jnp.where(drawing[:, None] == 0, excluded, scores.shape[1])
    return scores.at[jnp.arange(len(scores))[:, None], excluded].set(-jnp.inf, mode="drop")


def _most_probable(scores: Array) -> tuple[Array, Array]:
    """The ids int32 [B, TOP] of the largest logits [B, V] and their log-probabilities."""
    best, ids = jax.lax.top_k(scores, min(TOP, scores.shape[1]))
    missing = [(0, 0), (0, TOP - best.shape[1])]
    best = jnp.pad(best - jax.nn.logsumexp(scores, -1, keepdims=True), missing, constant_values=-jnp.inf)
    return jnp.pad(ids.astype(jnp.int32), missing), best


def _none(scores: Array) -> tuple[Array, Array]:
    return jnp.zeros((len(scores), TOP), jnp.int32), jnp.zeros((len(scores), TOP))


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


def cache_dtype(params: Params) -> np.dtype:
    """Activations and cache have the dtype of the embedding; of a quantised one, that of the norms."""
    embed = params["embed"]
    return (params["final_norm"]["scale"] if isinstance(embed, Weight) else embed).dtype
