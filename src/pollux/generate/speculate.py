"""Speculation: a drafter proposes the next few tokens, the model reads them all in one pass and keeps what it could have written itself.

A round drafts G tokens, checks them and adds one token of the model's own, all on the device; a dispatch runs rounds as `decode` runs
steps. What is written has exactly the distribution of plain decoding under every setting, for penalties, filters and the grammar act
on the model's distribution as they do there. Where nothing is random, and for look-up, it is token by token what plain decoding writes
with the same seed, up to the rounding of a pass over several tokens. Keys and values of rejected tokens stay in the cache until others
take their places (model/cache.py).

Guided batches are decoded plainly: their second half of rows would need drafts of its own.
Shapes: B rows, G drafted tokens, T = G + 1, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from pollux.generate import thoughts
from pollux.generate.answer import ACCEPTED, OWN, REPLACED
from pollux.generate.decode import CHUNK, TOP, State, Written, cache_dtype, without
from pollux.generate.drafter import Draft, Drafter, append, draw, key
from pollux.generate.grammar import Grammar
from pollux.generate.sampler import SamplerState, advance, logprobs_of, probabilities, sample
from pollux.model.cache import Cache
from pollux.model.config import ModelConfig
from pollux.model.decoder import hidden, logits
from pollux.model.params import Params
from pollux.tokens.sequence import Inputs

Array = Any  # numpy.ndarray or jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Speculation:
    state: State
    memory: Any  # of the drafter


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("speculation",))
def speculate(
    params: Params, config: ModelConfig, drafter: Drafter, grammar: Grammar, speculation: Speculation, ended: Array, steps: Array
) -> tuple[Speculation, Written]:
    """Rounds until a row has written `steps` <= CHUNK tokens or all have ended. `ended` bool [B]: rows that the caller ended since.

    Rows write up to CHUNK + G tokens; `origins` are OWN, ACCEPTED or REPLACED.
    """
    shape = ended.shape[0], CHUNK + drafter.length
    state = speculation.state
    speculation = replace(speculation, state=replace(state, left=jnp.where(ended, 0, state.left)))

    def running(carry):
        speculation, written, *_ = carry
        return (jnp.max(written) < steps) & jnp.any(speculation.state.left > 0)

    def body(carry):
        speculation, written, *columns = carry
        speculation, kept, *new = _round(params, config, drafter, grammar, speculation)
        return speculation, written + kept, *(append(old, written, x, kept) for old, x in zip(columns, new, strict=True))

    columns = jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)
    speculation, _, ids, logprobs, origins = jax.lax.while_loop(running, body, (speculation, jnp.zeros(shape[0], jnp.int32), *columns))
    state, none = speculation.state, jnp.zeros((*shape, TOP))
    return speculation, Written(ids, logprobs, none.astype(jnp.int32), none, state.drawing, state.thinking, state.position, origins)


def _round(params: Params, config: ModelConfig, drafter: Drafter, grammar: Grammar, speculation: Speculation):
    """Draft, check, keep. Returns the state, the number of tokens kept int32 [B], and [B, T] ids, log-probabilities and origins."""
    state, active = speculation.state, speculation.state.left > 0
    memory, draft = drafter.draft(speculation.memory, grammar, state, jnp.clip(state.left - 1, 0, drafter.length))
    step = jnp.arange(drafter.length + 1)
    ids_BT = jnp.concatenate([state.token[:, None], draft.ids], 1)
    zero = jnp.zeros_like(ids_BT)
    read = active[:, None] & (step <= draft.number[:, None])
    all_inputs = Inputs(ids_BT, state.position[:, None] + step, read.astype(jnp.int32), zero, zero, {})

    def scores_of(width: int) -> tuple[Cache, Array]:
        out = hidden(params, config, jax.tree.map(lambda x: x[:, :width], all_inputs), state.cache, cache_dtype(params))
        assert out.cache is not None
        return out.cache, jnp.pad(logits(params, config, out.hidden), ((0, 0), (0, drafter.length + 1 - width), (0, 0)))

    cache, scores = (
        scores_of(drafter.length + 1)
        if not drafter.abstains
        else jax.lax.cond(jnp.any(draft.number > 0), lambda: scores_of(drafter.length + 1), lambda: scores_of(1))
    )
    drawing, thinking, counts = _along(grammar, state, draft)
    may_come = jax.vmap(lambda d, t: grammar.allowed(d) & thoughts.allowed(grammar, t), 1, 1)(drawing, thinking)
    scores = jnp.where(may_come, scores, -jnp.inf)
    scores = jax.vmap(lambda s, d: without(s, d, state.excluded), 1, 1)(scores, drawing)
    number, ids, logprobs = _check(scores, state.sampler, counts, draft)

    stopped = jnp.isin(ids, grammar.stops) & (step <= number[:, None])
    kept = jnp.where(active, jnp.where(stopped.any(1), jnp.argmax(stopped, 1), number) + 1, 0)
    final = jnp.maximum(kept - 1, 0)
    token = _at(ids, final)
    origins = jnp.where(step < number[:, None], ACCEPTED, jnp.where(draft.number > number, REPLACED, OWN)[:, None])
    memory = drafter.follow(memory, draft, state, ids, kept)
    sampler = replace(state.sampler, drawn=state.sampler.drawn + final, counts=_at(counts, final))
    state = replace(
        state,
        cache=cache,
        sampler=advance(sampler, token, active & (token < grammar.first_code)),
        token=jnp.where(active, token, state.token),
        position=state.position + kept,
        drawing=jnp.where(active, grammar.follow(_at(drawing, final), token), state.drawing),
        thinking=jnp.where(active, thoughts.follow(grammar, _at(thinking, final), token), state.thinking),
        left=jnp.where(stopped.any(1), 0, state.left - kept),
    )
    return Speculation(state, memory), kept, ids, logprobs, origins


def _along(grammar: Grammar, state: State, draft: Draft) -> tuple[Array, Array, Array]:
    """Before each token of the round, if the draft before it is right: states of grammar and thoughts [B, T] and counts of the sampler
    [B, T, V]."""
    drawing, thinking, sampler = [state.drawing], [state.thinking], [state.sampler]
    for ids in draft.ids.T:
        drawing.append(grammar.follow(drawing[-1], ids))
        thinking.append(thoughts.follow(grammar, thinking[-1], ids))
        sampler.append(advance(sampler[-1], ids, ids < grammar.first_code))
    return jnp.stack(drawing, 1), jnp.stack(thinking, 1), jnp.stack([jnp.asarray(s.counts) for s in sampler], 1)


def _check(scores: Array, sampler: SamplerState, counts: Array, draft: Draft) -> tuple[Array, Array, Array]:
    """How many drafted tokens are accepted int32 [B], and [B, T] the tokens of the round up to that place, and log-probabilities.

    scores: float32 [B, T, V], the model's for each token of the round. counts: the sampler's, as `_along` returns them.
    """
    drawn = sampler.drawn[:, None] + jnp.arange(scores.shape[1])

    def each(function: Callable) -> Any:
        return jax.vmap(lambda x, n, c: function(x, replace(sampler, drawn=n, counts=c)), 1, 1)(scores, drawn, counts)

    if draft.probs is None:
        ids, logprobs = each(sample)
        agreed = ids[:, :-1] == draft.ids
        return _accepted(agreed, draft), ids, logprobs
    number, ids = accept(each(probabilities), draft, replace(sampler, drawn=drawn))
    return number, ids, logprobs_of(scores, ids)


def accept(probs: Array, draft: Draft, sampler: SamplerState) -> tuple[Array, Array]:
    """The rule of Leviathan et al. (2023) and Chen et al. (2023): a token x drawn from q is kept with probability min(1, p(x) / q(x)),
    and the first that is not is replaced by one drawn from max(0, p - q), normalised; hence what is written is drawn from p.

    probs: p, float32 [B, T, V]. draft.probs: q, float32 [B, G, V]. sampler: with `drawn` int32 [B, T] for each token of the round.
    Returns how many drafted tokens are kept int32 [B], and [B, T] the tokens up to that place.
    """
    assert draft.probs is not None
    p, q = (jnp.take_along_axis(x, draft.ids[..., None], 2)[..., 0] for x in (probs[:, :-1], draft.probs))
    uniform = jax.vmap(jax.vmap(lambda seed, drawn: jax.random.uniform(key(seed, drawn, 1)), (None, 0)))(
        sampler.seed, sampler.drawn[:, :-1]
    )
    number = _accepted(uniform * q < p, draft)
    final = _at(probs, number)
    proposed = _at(jnp.pad(draft.probs, ((0, 0), (0, 1), (0, 0))), number)
    excess = jnp.where((number < draft.number)[:, None], jnp.maximum(final - proposed, 0), final)
    excess = jnp.where(excess.sum(-1, keepdims=True) > 0, excess, final)  # p = q up to rounding
    token = draw(excess, replace(sampler, drawn=_at(sampler.drawn, number)), 2)
    step = jnp.arange(probs.shape[1])
    return number, jnp.where(step < number[:, None], jnp.pad(draft.ids, ((0, 0), (0, 1))), token[:, None])


def _accepted(agreed: Array, draft: Draft) -> Array:
    """int32 [B], how many drafted tokens come before the first that is not agreed, bool [B, G]."""
    meant = jnp.arange(agreed.shape[1]) < draft.number[:, None]
    return jnp.cumprod(agreed & meant, 1, dtype=jnp.int32).sum(1)


def _at(x_BT: Array, index_B: Array) -> Array:
    """x[b, index[b]] of each row."""
    return jnp.take_along_axis(x_BT, index_B.reshape(-1, *[1] * (x_BT.ndim - 1)), 1)[:, 0]
