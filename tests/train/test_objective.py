"""The objective against float64 numpy formulas, computed from the model's hidden states and logits at every position."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from random_batch import TOKENS, random_batch, small_model
from scipy.special import logsumexp

from pollux.data.mixture import DataConfig, SourceConfig
from pollux.model import decoder, params
from pollux.tokens.sequence import Modality
from pollux.train import objective
from pollux.train.config import LossConfig, TrainConfig

LOSS = LossConfig(alpha=0.7, beta=0.3, gamma=1.5, z=0.01, draw=2.5)


@pytest.fixture(scope="module")
def case():
    """Parameters, batch, hidden states, logits and the loss with its metrics."""
    data = DataConfig((SourceConfig("world", task="picture"),))
    config = TrainConfig(small_model(num_groups=1), TOKENS, data, vocabulary="", steps=1, loss=LOSS, pairs_per_row=3)
    weights = jax.jit(lambda: params.init(config.model, jax.random.key(1)))()
    batch = random_batch(seed=3)

    @jax.jit
    def everything(weights, batch):
        hidden = decoder.hidden(weights, config.model, batch.inputs).hidden
        return hidden, decoder.logits(weights, config.model, hidden), *objective.loss(weights, config, batch)

    return weights, batch, *jax.tree.map(lambda x: np.asarray(x, np.float64), everything(weights, batch))


def test_language_loss_is_the_weighted_mean_cross_entropy_per_modality(case):
    _, batch, _, logits, _, metrics = case
    targets = batch.targets
    rows = np.arange(len(logits))[:, None]
    nll = logsumexp(logits, -1)[rows, targets.index] - logits[rows, targets.index, targets.ids]
    draw = targets.modality == Modality.DRAW
    np.testing.assert_allclose(metrics["text"], np.average(nll, weights=targets.weight * ~draw), rtol=1e-5)
    np.testing.assert_allclose(metrics["draw"], np.average(nll, weights=targets.weight * draw), rtol=1e-5)
    np.testing.assert_allclose(metrics["lm"], np.average(nll, weights=targets.weight * np.where(draw, 2.5, 1.0)), rtol=1e-5)


def test_z_is_the_mean_squared_log_normaliser_at_the_targets(case):
    _, batch, _, logits, _, metrics = case
    targets = batch.targets
    log_z = np.take_along_axis(logsumexp(logits, -1), targets.index, 1)
    weight = targets.weight * np.where(targets.modality == Modality.DRAW, 2.5, 1.0)
    np.testing.assert_allclose(metrics["z"], np.average(log_z**2, weights=weight), rtol=1e-5)


def test_align_is_info_nce_between_pooled_hidden_states_of_all_pairs(case):
    weights, batch, hidden, _, _, metrics = case
    sides = {1: [], 2: []}
    for row in range(len(hidden)):
        for segment in (1, 2):
            for side, items in sides.items():
                member = (batch.inputs.segment[row] == segment) & (batch.targets.pool[row] == side)
                items.append(hidden[row][member].mean(0))
    media, text = (np.stack(items) / np.linalg.norm(items, axis=-1, keepdims=True) for items in sides.values())
    scores = media @ text.T / np.exp(float(weights["log_temperature"]))
    expected = np.mean([logsumexp(scores, 1) - np.diag(scores), logsumexp(scores, 0) - np.diag(scores)])
    np.testing.assert_allclose(metrics["align"], expected, rtol=1e-4)
    assert metrics["pairs"] == 8


def test_objective_is_the_weighted_sum_of_its_terms(case):
    *_, loss, metrics = case
    regular = LOSS.z * metrics["z"] + LOSS.balance * metrics["balance"]
    expected = LOSS.alpha * metrics["lm"] + LOSS.beta * metrics["align"] + LOSS.gamma * regular
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_a_document_with_one_side_only_is_no_pair_and_no_negative():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(1, 6, 4)).astype(np.float32)
    segment = np.array([[1, 1, 2, 3, 3, 0]])
    pool = np.array([[1, 2, 1, 1, 2, 0]])

    @jax.jit
    def align(pool):
        pairs = objective.pool_pairs(hidden, segment, pool, pairs=4)
        return *pairs, objective.info_nce(*pairs, np.float32(-1.0))

    media, text, present, with_lonely = align(pool)
    np.testing.assert_array_equal(present, [True, False, True, False])
    pool[0, 2] = 0
    *_, without = align(pool)
    np.testing.assert_allclose(with_lonely, without, rtol=1e-6)
    unit = [np.asarray(x, np.float64)[[0, 2]] / np.linalg.norm(np.asarray(x)[[0, 2]], axis=-1, keepdims=True) for x in (media, text)]
    scores = unit[0] @ unit[1].T * np.e
    expected = np.mean([logsumexp(scores, 1) - np.diag(scores), logsumexp(scores, 0) - np.diag(scores)])
    np.testing.assert_allclose(with_lonely, expected, rtol=1e-5)


def test_pairs_beyond_the_capacity_are_left_out():
    hidden = np.random.default_rng(0).normal(size=(1, 4, 4)).astype(np.float32)
    pool_pairs = jax.jit(objective.pool_pairs, static_argnames="pairs")
    media, _, present = pool_pairs(hidden, np.array([[1, 1, 2, 2]]), np.array([[1, 2, 1, 2]]), pairs=1)
    np.testing.assert_allclose(media, hidden[:, 0])
    np.testing.assert_array_equal(present, [True])


def test_unused_target_slots_do_not_count(case):
    _, batch, *_ = case
    total = objective.totals(LOSS, batch.targets)
    silent = replace(batch.targets, weight=np.zeros_like(batch.targets.weight))
    assert float(total.text + total.draw) == batch.targets.weight.sum()
    assert float(objective.totals(LOSS, silent).weight) == 0
