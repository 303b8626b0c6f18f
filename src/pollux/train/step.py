"""One optimiser step as one jitted function: gradients over accumulated batches, clipping, the update, the averaged weights.

The state is donated and the metrics stay on the device, so that dispatching a step never waits for the one before.

Shapes: A accumulated batches, each with B rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pollux.model.params import Params, initialise
from pollux.tokens.sequence import Batch
from pollux.train import lora, objective, optimizer
from pollux.train.config import TrainConfig
from pollux.train.distillation import Teacher, TopK
from pollux.train.objective import Metrics


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All that changes during a run, except the position in the data."""

    step: jax.Array  # int32 scalar, finished optimiser steps
    params: Params  # what is trained: those of the model, or adapters
    optimizer: Any
    ema: Params | None  # averaged parameters; None when the config has ema = 0


def initial_state(config: TrainConfig, params: Params | None = None) -> State:
    """The state before the first step; parameters, or adapters, follow from the seed if none are given."""
    specs = lora.trained(config)
    params = initialise(specs, jax.random.key(config.seed)) if params is None else params
    ema = jax.tree.map(jnp.copy, params) if config.ema else None
    return State(jnp.zeros((), jnp.int32), params, optimizer.build(config.optimizer, specs).init(params), ema)


def make_step(config: TrainConfig) -> Callable[..., tuple[State, Metrics]]:
    """step(state, batch, factor, base=None, teacher=None) -> (state, metrics), to be jitted with the state donated.

    batch: leaves [A, ...]. factor: float32 scalar that multiplies the learning rates (train/schedule.py). base: the frozen
    parameters that adapters are attached to. teacher: a Teacher, or the TopK of this batch with leaves [A, ...].
    Metrics are float32 scalars: those of objective.loss, grad_norm (of what is not frozen, before clipping), rate_factor (the argument
    `factor`) and tokens (positions that are not padding).
    """
    specs = lora.trained(config)
    transformation = optimizer.build(config.optimizer, specs)
    frozen = optimizer.frozen(config.optimizer, specs)

    def step(
        state: State, batch: Batch, factor: jax.Array, base: Params | None = None, teacher: Teacher | TopK | None = None
    ) -> tuple[State, Metrics]:
        grads, metrics = _gradient(state.params, base, config, batch, teacher)
        grads = jax.tree.map(lambda grad, fixed: jnp.zeros_like(grad) if fixed else grad, grads, frozen)
        with jax.named_scope("optimizer"):
            norm = jax.lax.sqrt(sum(jax.lax.reduce_sum(jax.lax.square(g), tuple(range(g.ndim))) for g in jax.tree.leaves(grads)))
            if config.clip:
                scale = jnp.minimum(1.0, config.clip / jnp.maximum(norm, 1e-12))
                grads = jax.tree.map(lambda g: g * scale, grads)
            updates, optimizer_state = transformation.update(grads, state.optimizer, state.params)
            params = jax.tree.map(lambda p, u: p + factor * u, state.params, updates)
            ema = state.ema
            if config.ema:
                decay = ema_decay(config.ema, state.step)
                ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)
        tokens = jnp.sum(batch.inputs.segment > 0).astype(jnp.float32)
        metrics |= {"grad_norm": norm, "rate_factor": factor, "tokens": tokens}
        return State(state.step + 1, params, optimizer_state, ema), metrics

    return step


def ema_decay(decay: float, step: jax.Array) -> jax.Array:
    """min(decay, (1 + t) / (10 + t)) after t finished steps: a short run is not held back by its random start."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def _gradient(
    params: Params, base: Params | None, config: TrainConfig, batch: Batch, teacher: Teacher | TopK | None
) -> tuple[Params, Metrics]:
    """Gradient and metrics of the objective over all A batches, as if they were one (InfoNCE and expert balance: within each)."""
    total = objective.totals(config.loss, batch.targets, config.accumulation)
    said = teacher if isinstance(teacher, TopK) else None
    params = lora.rounded(config, params)

    def loss(params: Params, one: Batch, said: TopK | None):
        return objective.loss(lora.attached(config, params, base), config, one, total, teacher if said is None else said)

    def one_batch(one: Batch, said: TopK | None) -> tuple[Params, Metrics]:
        grads, metrics = jax.grad(loss, has_aux=True)(params, one, said)
        return grads, metrics

    if config.accumulation == 1:
        return one_batch(*jax.tree.map(lambda x: x[0], (batch, said)))

    def add(sums: Params, read: tuple[Batch, TopK | None]):
        grads, metrics = one_batch(*read)
        return jax.tree.map(jnp.add, sums, grads), metrics

    grads, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (batch, said))
    return grads, jax.tree.map(lambda x: jnp.sum(x, 0), metrics)
