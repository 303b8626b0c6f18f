"""Small models and random but valid batches for the tests of training."""

from __future__ import annotations

import jax
import numpy as np

from pollux.model.config import AttentionConfig, FeedForwardConfig, LayerConfig, ModelConfig, SoftInputConfig
from pollux.tokens.config import ImageTokens, TokensConfig
from pollux.tokens.sequence import Batch, Inputs, Modality, SoftBatch, Targets

TOKENS = TokensConfig(image=ImageTokens(patch=2, stride=2))


def small_model(**changes) -> ModelConfig:
    layer = LayerConfig(AttentionConfig(2, 1, 8), FeedForwardConfig(24))
    options = dict(name="small", vocab_size=40, d_model=16, pattern=(layer,), num_groups=2)
    options |= dict(soft_inputs=(SoftInputConfig("image", TOKENS.image.features, grid=4),))
    return ModelConfig(**(options | changes))


def random_batch(seed: int = 0, rows: int = 4, length: int = 24, targets: int = 12) -> Batch:
    """Rows of three documents; the first two have a contrastive pair (image tokens 2-4 of a document with text tokens 5-6)."""
    rng = np.random.default_rng(seed)
    segment = np.repeat([[1] * 8 + [2] * 8 + [3] * 5 + [0] * (length - 21)], rows, 0).astype(np.int32)
    position = np.concatenate([np.arange(8), np.arange(8), np.arange(5), np.zeros(length - 21)]).astype(np.int32)
    pool = np.zeros((rows, length), np.int32)
    for start in (0, 8):
        pool[:, start + 2 : start + 5] = 1
        pool[:, start + 5 : start + 7] = 2
    where = np.stack([np.sort(rng.choice(20, targets, replace=False)) for _ in range(rows)]).astype(np.int32)
    modality = rng.choice([Modality.TEXT, Modality.DRAW], (rows, targets)).astype(np.int32)
    weight = (rng.random((rows, targets)) < 0.8).astype(np.float32)
    index = np.repeat([[2, 3, 4, 10, 11, 12, length]], rows, 0).astype(np.int32)
    features = rng.normal(size=(rows, 7, TOKENS.image.features)).astype(np.float32)
    coord = rng.integers(0, 4, (rows, 7, 2)).astype(np.int32)
    ids = rng.integers(0, 40, (rows, length)).astype(np.int32)
    zero = np.zeros((rows, length), np.int32)
    inputs = Inputs(ids, np.repeat(position[None], rows, 0), segment, zero, zero, {"image": SoftBatch(features, index, coord)})
    return Batch(inputs, Targets(where, rng.integers(0, 40, (rows, targets)).astype(np.int32), weight, modality, pool))


def stack(*batches: Batch) -> Batch:
    """Batches as the step takes them: leaves [A, B, ...]."""
    return jax.tree.map(lambda *x: np.stack(x), *batches)
