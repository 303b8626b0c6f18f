"""Optimisers against float64 numpy: Adafactor as published, AdamW, and Muon by the singular values of its updates."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from random_batch import small_model

from pollux.model import params as model_params
from pollux.train import optimizer
from pollux.train.config import OptimizerConfig

MODEL = small_model(soft_inputs=(), num_groups=2)
SPECS = model_params.declare(MODEL)
STEPS = 4


def trajectory(config: OptimizerConfig):
    """Parameters before, gradients and updates of a few steps with random gradients, as flat lists of float64 arrays."""
    transformation = optimizer.build(config, SPECS)
    params = jax.jit(lambda: model_params.init(MODEL, jax.random.key(0)))()
    state = transformation.init(params)
    rng = np.random.default_rng(0)

    @jax.jit
    def step(params, state, grads):
        updates, state = transformation.update(grads, state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), state, updates

    def flat(tree):
        return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]

    records = []
    for _ in range(STEPS):
        grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32) * 0.1, params)
        before = params
        params, state, updates = step(params, state, grads)
        records.append((flat(before), flat(grads), flat(updates)))
    specs = jax.tree.leaves(SPECS, is_leaf=model_params.is_spec)
    return specs, records


def members(spec, array):
    """The parameters that a leaf stacks."""
    return list(array) if spec.axes[:1] == ("layers",) else [array]


def adafactor_updates(grads, params, rate):
    """Shazeer & Stern 2018: algorithm 4 for matrices, 5 for the rest; sums over rows and columns as printed there."""
    rows = columns = full = 0.0
    updates, x = [], params[0]
    for t, gradient in enumerate(grads, 1):
        x, beta2, square = params[t - 1], 1 - t**-0.8, gradient**2 + 1e-30
        if x.ndim == 2:
            rows = beta2 * rows + (1 - beta2) * square.sum(1, keepdims=True)
            columns = beta2 * columns + (1 - beta2) * square.sum(0, keepdims=True)
            second = rows * columns / rows.sum()
        else:
            second = full = beta2 * full + (1 - beta2) * square
        u = gradient / np.sqrt(second)
        u /= max(1.0, np.sqrt(np.mean(u**2)))
        updates.append(-rate * max(1e-3, np.sqrt(np.mean(x**2))) * u)
    return updates


def test_adafactor_is_the_published_algorithm_for_each_layer_of_a_stack():
    specs, records = trajectory(OptimizerConfig("adafactor", learning_rate=0.01))
    for leaf, spec in enumerate(specs):
        histories = [[members(spec, record[part][leaf]) for record in records] for part in range(3)]
        for member in range(len(histories[0][0])):
            params, grads, updates = ([step[member] for step in history] for history in histories)
            for actual, expected in zip(updates, adafactor_updates(grads, params, 0.01), strict=True):
                np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=1e-9)


def test_adamw_decays_matrices_only():
    specs, records = trajectory(OptimizerConfig("adamw", learning_rate=0.01, weight_decay=0.1))
    for leaf, spec in enumerate(specs):
        first = second = 0.0
        decay = 0.1 if set(spec.axes) & {"heads", "kv_heads", "mlp"} and len(spec.shape) == 3 else 0.0
        for t, (params, grads, updates) in enumerate(records, 1):
            first = 0.9 * first + 0.1 * grads[leaf]
            second = 0.95 * second + 0.05 * grads[leaf] ** 2
            direction = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.95**t)) + 1e-8)
            np.testing.assert_allclose(updates[leaf], -0.01 * (direction + decay * params[leaf]), rtol=2e-3, atol=1e-6)


def test_muon_orthogonalises_the_nesterov_momentum_of_each_matrix_and_leaves_the_rest_to_adam():
    config = OptimizerConfig("muon", learning_rate=0.005, matrix_learning_rate=0.01)
    specs, records = trajectory(config)
    for leaf, spec in enumerate(specs):
        if len(spec.shape) == 3:
            trace = 0.0
            for _, grads, updates in records:
                trace = 0.95 * trace + grads[leaf]
                momentum = grads[leaf] + 0.95 * trace
                for update, matrix in zip(updates[leaf], momentum, strict=True):
                    left, _, right = np.linalg.svd(matrix, full_matrices=False)
                    scale = 0.01 * 0.2 * np.sqrt(max(matrix.shape))
                    values = np.linalg.svd(-update / scale, compute_uv=False)
                    assert 0.6 < values.min() and values.max() < 1.3, (spec, values)
                    cosine = np.sum(-update * (left @ right)) / np.linalg.norm(update) / np.sqrt(min(matrix.shape))
                    assert cosine > 0.95, "the update points along U Vᵀ"
        else:
            np.testing.assert_allclose(np.abs(records[0][2][leaf]), 0.005, rtol=1e-3)  # Adam's first step is sign(g)


@pytest.mark.parametrize("kind", ["adafactor", "adamw", "muon"])
def test_frozen_parameters_stay_and_the_rest_moves_as_if_nothing_were_frozen(kind):
    config = OptimizerConfig(kind, learning_rate=0.01, weight_decay=0.1)
    specs, plain = trajectory(config)
    _, partly = trajectory(dataclasses.replace(config, frozen=("embed", "groups.0.attention", "final_norm.scale")))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(model_params.abstract(MODEL))]
    fixed = [path.startswith(("['embed']", "['groups'][0]['attention']", "['final_norm']['scale']")) for path in paths]
    assert 5 < sum(fixed) < len(fixed) - 3 and any("attention_pre_norm" in p for p, f in zip(paths, fixed, strict=True) if not f)
    for (before, _, updates), (_, _, expected) in zip(partly, plain, strict=True):
        for path, start, value, update, other in zip(paths, partly[0][0], before, updates, expected, strict=True):
            if fixed[paths.index(path)]:
                assert not update.any() and (value == start).all(), path
            else:
                np.testing.assert_allclose(update, other, rtol=1e-4, atol=1e-7, err_msg=path)
    part, whole = (
        jax.eval_shape(optimizer.build(dataclasses.replace(config, frozen=names), SPECS).init, model_params.abstract(MODEL))
        for names in (("groups", "embed"), ())
    )
    assert len(jax.tree.leaves(part)) < len(jax.tree.leaves(whole)), "what does not move needs no moments"


def test_what_to_freeze_must_exist_and_must_not_be_everything():
    with pytest.raises(ValueError, match="'groups.0.atten', but no parameter's path begins so; there are embed, "):
        optimizer.build(OptimizerConfig(frozen=("embed", "groups.0.atten")), SPECS)
    with pytest.raises(ValueError, match="leaves no parameter to train"):
        optimizer.build(OptimizerConfig(frozen=tuple(SPECS.keys() - {"soft", "tail"})), SPECS)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8)])
def test_orthogonalize_equals_the_plain_newton_schulz_iteration(shape):
    x = np.random.default_rng(0).normal(size=shape)
    y = x / np.linalg.norm(x, axis=(1, 2), keepdims=True)
    a, b, c = optimizer.NEWTON_SCHULZ
    for _ in range(optimizer.NEWTON_SCHULZ_STEPS):
        gram = y @ y.swapaxes(1, 2)
        y = a * y + (b * gram + c * gram @ gram) @ y
    np.testing.assert_allclose(jax.jit(optimizer.orthogonalize)(x.astype(np.float32)), y, atol=2e-4)


def test_orthogonalize_keeps_low_rank_finite():
    x = np.zeros((2, 8, 12), np.float32)
    x[1] = np.outer(np.arange(8), np.arange(12))
    assert np.isfinite(jax.jit(optimizer.orthogonalize)(x)).all()
