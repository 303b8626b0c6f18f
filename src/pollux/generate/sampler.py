"""From logits to the next token of every row: penalties, temperature, top-k, top-p, min-p and a seeded draw.

Stands between the decoder and the engine's loop and runs under jit. Each row has its own settings and its own random
stream, a function of (seed, number of tokens drawn), so that a row's text does not depend on its neighbours in the batch.
Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # numpy.ndarray or jax.Array


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens and when to stop. temperature 0 is greedy; the other defaults change nothing."""

    temperature: float = 1.0
    top_k: int = 0  # keep the k most probable tokens; 0 = all
    top_p: float = 1.0  # then the smallest set with this share of what is left
    min_p: float = 0.0  # then those at least min_p times as probable as the best
    repetition_penalty: float = 1.0  # logits of words in prompt or output: l/r if l > 0 else l*r (Keskar et al. 2019)
    presence_penalty: float = 0.0  # subtracted from tokens that occur in the output
    frequency_penalty: float = 0.0  # subtracted once per occurrence in the output
    seed: int = 0
    guidance: float = 1.0  # inside a drawing: unconditional + guidance * (conditional - unconditional)
    stop: tuple[str, ...] = ()  # generation ends before any of these strings
    max_output_tokens: int = 256
    max_thought_tokens: int | None = None  # of them, those of thoughts, their markers counted; None = as many as the model likes

    def __post_init__(self):
        checks = {
            "temperature": (self.temperature >= 0, "0 (greedy) or positive"),
            "top_k": (self.top_k >= 0, "0 (all) or positive"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "repetition_penalty": (self.repetition_penalty > 0, "positive"),
            "guidance": (self.guidance >= 0, "0 or positive"),
            "max_output_tokens": (self.max_output_tokens >= 1, "at least 1"),
            "max_thought_tokens": (self.max_thought_tokens is None or self.max_thought_tokens >= 0, "0 (no thoughts) or positive"),
            "seed": (0 <= self.seed < 2**32, "in [0, 2^32)"),
            "stop": (not isinstance(self.stop, str) and all(self.stop), "a tuple of non-empty strings"),
        }
        for name, (valid, rule) in checks.items():
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)!r} but must be {rule}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplerState:
    """Settings and history of every row. Penalties are left out of the compiled step if no row asks for them."""

    seed: Array  # uint32 [B]
    drawn: Array  # int32 [B], tokens drawn so far
    temperature: Array  # this and the next six: float32 or int32 [B, 1]
    top_k: Array
    top_p: Array
    min_p: Array
    repetition_penalty: Array
    presence_penalty: Array
    frequency_penalty: Array
    counts: Array  # int32 [B, V], occurrences in the output; [B, 0] without penalties
    in_prompt: Array  # bool [B, V]; [B, 0] without penalties
    penalized: bool = field(metadata={"static": True})


def sampler_state(samplings: Sequence[Sampling], prompts: Sequence[np.ndarray], vocab_size: int) -> SamplerState:
    """State before the first token. prompts: int ids of each row, which the repetition penalty counts as seen."""
    penalized = any(s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0 for s in samplings)
    rows, width = len(samplings), vocab_size if penalized else 0
    in_prompt = np.zeros((rows, width), bool)
    if penalized:
        for row, ids in zip(in_prompt, prompts, strict=True):
            row[np.asarray(ids, np.int64)] = True

    def column(name: str, dtype) -> np.ndarray:
        return np.array([[getattr(s, name)] for s in samplings], dtype)

    return SamplerState(
        seed=np.array([s.seed for s in samplings], np.uint32),
        drawn=np.zeros(rows, np.int32),
        temperature=column("temperature", np.float32),
        top_k=np.array([[s.top_k or vocab_size] for s in samplings], np.int32),
        top_p=column("top_p", np.float32),
        min_p=column("min_p", np.float32),
        repetition_penalty=column("repetition_penalty", np.float32),
        presence_penalty=column("presence_penalty", np.float32),
        frequency_penalty=column("frequency_penalty", np.float32),
        counts=np.zeros((rows, width), np.int32),
        in_prompt=in_prompt,
        penalized=penalized,
    )


def sample(logits: Array, state: SamplerState) -> tuple[Array, Array]:
    """Draws one token a row from float32 logits [B, V]; -inf excludes a token.

    Returns ids int32 [B] and float32 [B], their log-probability under the logits as given (before penalties and temperature).
    """
    scores = _penalize(logits, state) if state.penalized else logits
    ids = most_probable(scores)
    random = state.temperature[:, 0] > 0

    def drawn() -> Array:
        return jnp.where(random, _draw(jax.nn.softmax(_scaled(scores, state)), jax.vmap(_uniform)(state.seed, state.drawn)), ids)

    ids = jax.lax.cond(jnp.any(random), drawn, lambda: ids)
    return ids, logprobs_of(logits, ids)


def most_probable(scores: Array) -> Array:
    """The first id int32 [...] of the largest of scores [..., V]; without a largest, because of a NaN, the last id.

    Two plain reductions, which XLA's CPU backend does faster than an argmax.
    """
    ids = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    found = jnp.where(scores == jnp.max(scores, -1, keepdims=True), ids, len(ids) - 1)
    return jnp.min(found, -1)


def probabilities(logits: Array, state: SamplerState) -> Array:
    """float32 [B, V], with which probability `sample` draws each token from float32 logits [B, V]."""
    scores = _penalize(logits, state) if state.penalized else logits
    best = jnp.arange(scores.shape[-1]) == most_probable(scores)[:, None]
    return jnp.where(state.temperature > 0, jax.nn.softmax(_scaled(scores, state)), best)


def logprobs_of(logits: Array, ids: Array) -> Array:
    """float32 [...], log-probabilities of ids [...] under logits [..., V]."""
    return jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)


def advance(state: SamplerState, ids: Array, counted: Array) -> SamplerState:
    """The state after ids int32 [B] were drawn; penalties see those where counted, bool [B]."""
    counts = state.counts
    if state.penalized:
        counts = jnp.asarray(counts).at[jnp.arange(len(ids)), ids].add(counted.astype(jnp.int32))
    return dataclasses.replace(state, counts=counts, drawn=state.drawn + 1)


def _scaled(scores: Array, state: SamplerState) -> Array:
    """Logits [B, V] of the distribution that a row with temperature > 0 draws from, given its penalized scores."""
    scaled = (scores - scores.max(-1, keepdims=True)) / jnp.where(state.temperature > 0, state.temperature, 1)
    filtered = (state.temperature > 0) & ((state.top_k < scores.shape[-1]) | (state.top_p < 1) | (state.min_p > 0))
    return jax.lax.cond(jnp.any(filtered), lambda: jnp.where(_kept(jax.nn.softmax(scaled), state), scaled, -jnp.inf), lambda: scaled)


def _uniform(seed: Array, drawn: Array) -> Array:
    return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), drawn))


def _draw(probs: Array, uniform: Array) -> Array:
    """int32 [B], the id where the running sum of probs float32 [B, V] passes uniform [B] of all; found in two steps, block and id.

    One random number a row costs less than one for every id.
    """
    rows, size = probs.shape
    block = 1 << max(4, size.bit_length() // 2)
    blocks = jnp.pad(probs, ((0, 0), (0, -size % block))).reshape(rows, -1, block)
    sums = jnp.cumsum(blocks.sum(-1), -1)
    target = uniform[:, None] * sums[:, -1:]
    number = _passed(sums, target)
    inner = jnp.cumsum(jnp.take_along_axis(blocks, number[:, None, None], 1)[:, 0], -1)
    before = jnp.take_along_axis(jnp.pad(sums, ((0, 0), (1, 0))), number[:, None], 1)
    return (number * block + _passed(inner, target - before)).astype(jnp.int32)


def _passed(sums: Array, target: Array) -> Array:
    """The first place of ascending sums [B, n] that is above target [B, 1], but none that adds nothing, as rounding might have it."""
    last = jnp.argmax(sums, -1)  # the first that reaches the end
    return jnp.minimum(jnp.sum(sums <= target, -1), last)


def _penalize(logits: Array, state: SamplerState) -> Array:
    seen = state.in_prompt | (state.counts > 0)
    repeated = jnp.where(logits > 0, logits / state.repetition_penalty, logits * state.repetition_penalty)
    logits = jnp.where(seen, repeated, logits)
    return logits - state.frequency_penalty * state.counts - state.presence_penalty * (state.counts > 0)


def _kept(probs: Array, state: SamplerState) -> Array:
    """Bool [B, V], the tokens that top-k, top-p and min-p leave. Equally probable tokens at an edge stay together."""
    kept = _most_probable(probs, lambda chosen: chosen.sum(-1, keepdims=True) >= state.top_k)
    left = jnp.where(kept, probs, 0)
    enough = state.top_p * left.sum(-1, keepdims=True)
    kept &= _most_probable(left, lambda chosen: jnp.where(chosen, left, 0).sum(-1, keepdims=True) >= enough)
    return kept & (probs >= state.min_p * probs.max(-1, keepdims=True))


def _most_probable(probs: Array, is_enough: Callable[[Array], Array]) -> Array:
    """The smallest set {p >= threshold} that is enough, or all if none is, without a sort.

    Non-negative floats are ordered like their bit patterns, so that 30 halvings of the patterns of [0, 1] end exactly.
    """
    bits = jax.lax.bitcast_convert_type(probs.astype(jnp.float32), jnp.int32)
    one = int(np.float32(1).view(np.int32))
    low = jnp.zeros((*probs.shape[:-1], 1), jnp.int32)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        enough = is_enough(bits >= middle)
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 30, halve, (low, jnp.full_like(low, one + 1)))
    return bits >= low
