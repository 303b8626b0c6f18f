"""Distillation: at every target the student is drawn to what a teacher expects there (Hinton et al. 2015), not only to the token that came.

The teacher is a frozen model that reads the same batch inside the same compiled step, or what such a model has made of the batch before:
its k most probable ids. Teacher P and student Q are both softmax(logits / temperature), and KL(P || Q) = sum P log(P / Q) is
multiplied by temperature^2, which keeps the size of its gradient.

With k ids, P and Q are compared over k + 1 outcomes, the last being any other id: sum_k p log(p / q) + p_rest log(p_rest / q_rest). By
the log-sum inequality that is at most the KL over all ids; it is 0 for a student that agrees wherever the teacher spoke, hence for the
teacher itself. The k probabilities scaled up to 1 instead would teach the student that nothing else ever happens.

Shapes: B rows, M targets a row, V vocabulary, k ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from pollux.generate.decode import cache_dtype
from pollux.model import decoder
from pollux.model.config import ModelConfig
from pollux.model.params import Params
from pollux.tokens.sequence import Array, Batch
from pollux.train.config import DistillConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Teacher:
    """A frozen model; its activations have the dtype of its weights."""

    params: Params
    config: ModelConfig = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TopK:
    """A teacher's most probable ids, at the temperature of the run."""

    ids: Array  # int32 [..., k]
    log_probabilities: Array  # float32 [..., k + 1], the last that of all other ids together; [..., V] if k = V, when there are none


def expectation(teacher: Teacher | TopK, config: DistillConfig, batch: Batch) -> jax.Array | TopK:
    """What the teacher expects at the targets: log-probabilities float32 [B, M, V] at the temperature, or its top k. No gradient."""
    if isinstance(teacher, TopK):
        return teacher
    with jax.named_scope("teacher"):
        out = decoder.hidden(teacher.params, teacher.config, batch.inputs, dtype=cache_dtype(teacher.params))
        predicting_BMD = jnp.take_along_axis(out.hidden, batch.targets.index[..., None], axis=1)
        logits_BMV = jax.lax.stop_gradient(decoder.logits(teacher.params, teacher.config, predicting_BMD))
        log_p_BMV = jax.nn.log_softmax(logits_BMV / config.temperature)
        return top_k(log_p_BMV, config.top_k) if config.top_k else log_p_BMV


def top_k(log_p: jax.Array, k: int) -> TopK:
    """The k most probable ids of log-probabilities [..., V], all if there are fewer."""
    ids = jax.lax.top_k(log_p, min(k, log_p.shape[-1]))[1]
    return TopK(ids, _gathered(log_p, ids))


def divergence(logits: jax.Array, teacher: jax.Array | TopK, config: DistillConfig) -> jax.Array:
    """KL in nats [...] of a teacher and a student with float32 logits [..., V], at the temperature and in the direction of config."""
    log_q = jax.nn.log_softmax(logits / config.temperature)
    if isinstance(teacher, TopK):
        log_p, log_q = teacher.log_probabilities, _gathered(log_q, teacher.ids)
    else:
        log_p = teacher
    if config.direction == "reverse":
        log_p, log_q = log_q, log_p
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)


def _gathered(log_p: jax.Array, ids: jax.Array) -> jax.Array:
    """Log-probabilities of ids [..., k], and of all others together if there are any. Adding those up keeps digits that 1 - sum loses."""
    chosen = jnp.take_along_axis(log_p, ids, -1)
    if ids.shape[-1] == log_p.shape[-1]:
        return chosen
    others = jnp.put_along_axis(log_p, ids, -jnp.inf, -1, inplace=False)
    return jnp.concatenate([chosen, jax.nn.logsumexp(others, -1, keepdims=True)], -1)
