"""How likely a model finds a text that it did not write: each token after those before it.

Shapes: T tokens, D width, V vocabulary, K most probable ids, C positions whose logits are in memory at a time.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from pollux.generate.decode import cache_dtype
from pollux.generate.prompts import padded_inputs
from pollux.model import decoder
from pollux.model.config import ModelConfig
from pollux.model.params import Params
from pollux.tokens.sequence import Inputs, Sequence

_TOP = 32  # most probable ids that are looked for, so that one program does for any smaller number
_POSITIONS = 128  # C: the logits of a whole prompt may be larger than the model


@dataclass(frozen=True)
class Likelihood:
    """Row t is about token t + 1. logprobs: float32 [T - 1]. top_ids, top_logprobs: [T - 1, K], the most probable first."""

    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray


def likelihood(params: Params, config: ModelConfig, sequence: Sequence, top: int = 0) -> Likelihood:
    """Log-probabilities of the tokens of a sequence, and of the `top` most probable ones in their places. Raises ValueError for a `top`
    above 32."""
    if not 0 <= top <= _TOP:
        raise ValueError(f"{top} alternatives are asked for, but there can be 0 to {_TOP}")
    inputs = padded_inputs([sequence])
    found = _likelihood(params, config, inputs)
    last = len(sequence) - 1
    logprobs, top_ids, top_logprobs = (np.asarray(array)[:last] for array in found)
    return Likelihood(logprobs, top_ids[:, :top], top_logprobs[:, :top])


@functools.partial(jax.jit, static_argnames=("config",))
def _likelihood(params: Params, config: ModelConfig, inputs: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    hidden_TD = decoder.hidden(params, config, inputs, dtype=cache_dtype(params)).hidden[0]
    following_T = jnp.roll(inputs.ids[0], -1)
    positions = min(len(following_T), _POSITIONS)

    def judged(some: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        hidden_CD, following_C = some
        logprobs_CV = jax.nn.log_softmax(decoder.logits(params, config, hidden_CD[None])[0].astype(jnp.float32))
        top_logprobs, top_ids = jax.lax.top_k(logprobs_CV, min(_TOP, logprobs_CV.shape[-1]))
        return jnp.take_along_axis(logprobs_CV, following_C[:, None], axis=-1)[:, 0], top_ids, top_logprobs

    parts = jax.lax.map(judged, (hidden_TD.reshape(-1, positions, hidden_TD.shape[-1]), following_T.reshape(-1, positions)))
    return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), parts)
