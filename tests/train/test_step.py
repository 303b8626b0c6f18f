"""One optimiser step: accumulation, clipping, averaged weights, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from random_batch import TOKENS, random_batch, small_model, stack

from pollux.data.mixture import DataConfig, SourceConfig
from pollux.train.config import LossConfig, OptimizerConfig, TrainConfig
from pollux.train.objective import loss
from pollux.train.step import initial_state, make_step

CONFIG = TrainConfig(
    small_model(soft_inputs=(), num_groups=1),
    TOKENS,
    DataConfig((SourceConfig("world", task="picture"),)),
    vocabulary="",
    steps=10,
    optimizer=OptimizerConfig("adamw", learning_rate=1e-2, beta1=0.0),
    loss=LossConfig(draw=3.0),
    clip=0.5,
    ema=0.9,
)


def text_batch(seed: int = 0, **changes):
    """A random batch without soft tokens."""
    batch = random_batch(seed, **changes)
    return replace(batch, inputs=replace(batch.inputs, soft={}))


@pytest.fixture(scope="module")
def step():
    return jax.jit(make_step(CONFIG))


@pytest.fixture(scope="module")
def state():
    return jax.jit(lambda: initial_state(CONFIG))()


def test_accumulated_batches_equal_one_big_batch(step, state):
    one, two = text_batch(seed=1), text_batch(seed=2)
    sparse = replace(two, targets=replace(two.targets, weight=two.targets.weight * (np.arange(12) < 3)))
    together = jax.tree.map(lambda *x: np.concatenate(x)[None], one, sparse)
    big, big_metrics = step(state, together, np.float32(1))
    small, small_metrics = jax.jit(make_step(replace(CONFIG, accumulation=2)))(state, stack(one, sparse), np.float32(1))
    for name, value in big_metrics.items():
        np.testing.assert_allclose(small_metrics[name], value, rtol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(small.optimizer), jax.tree.leaves(big.optimizer), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)


def test_training_on_one_batch_learns_it(step, state):
    batch, losses = stack(text_batch(rows=8)), []
    for _ in range(60):
        state, metrics = step(state, batch, np.float32(1))
        losses.append(float(metrics["lm"]))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 60


def test_a_clipped_gradient_has_the_norm_asked_for_and_averages_follow_the_parameters(step, state):
    new, metrics = step(state, stack(text_batch(rows=8)), np.float32(1))
    assert metrics["grad_norm"] > 0.5
    moments = jax.tree.leaves(new.optimizer[0].nu)
    squared_norm = sum(float(np.sum(np.asarray(x, np.float64))) for x in moments) / (1 - CONFIG.optimizer.beta2)
    assert squared_norm == pytest.approx(0.25, rel=1e-4)
    decay = min(0.9, 1 / 10)  # of the first step
    for old, now, mean in zip(*map(jax.tree.leaves, (state.params, new.params, new.ema)), strict=True):
        np.testing.assert_allclose(mean, decay * np.asarray(old) + (1 - decay) * np.asarray(now), atol=1e-6)


def test_a_factor_of_zero_changes_nothing(step, state):
    new, _ = step(state, stack(text_batch(rows=8)), np.float32(0))
    jax.tree.map(np.testing.assert_array_equal, state.params, new.params)


def test_gradients_of_frozen_parameters_do_not_count_in_the_norm(step, state):
    batch = stack(text_batch(rows=8))
    frozen = replace(CONFIG, optimizer=replace(CONFIG.optimizer, frozen=("embed",)))
    _, everything = step(state, batch, np.float32(1))
    _, rest = jax.jit(make_step(frozen))(jax.jit(lambda: initial_state(frozen))(), batch, np.float32(1))
    grads = jax.grad(lambda params: loss(params, CONFIG, jax.tree.map(lambda x: x[0], batch))[0])(state.params)
    embed = float(np.sum(np.asarray(grads["embed"], np.float64) ** 2))
    assert float(rest["grad_norm"]) ** 2 == pytest.approx(float(everything["grad_norm"]) ** 2 - embed, rel=1e-3)
    assert embed > 0.1 * float(everything["grad_norm"]) ** 2
