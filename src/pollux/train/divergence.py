"""When a run must stop, and what it leaves behind: the batch of the bad step, which numpy.load reads without the data that made it.

The step itself is repeated by resuming: it is a function of the checkpoint, the seed and its number.
"""

from __future__ import annotations

import math
from pathlib import Path

import jax
import numpy as np

from pollux.tokens.sequence import Batch
from pollux.train.config import TrainConfig

BAD_BATCH = "bad_batch.npz"


class Diverged(ValueError):
    """The loss or the gradient left the range of numbers, or the loss is far worse than a uniform guess."""


def fault(config: TrainConfig, metrics: dict[str, float]) -> str:
    """What is wrong with the metrics of a step, in words; "" if nothing is."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(metrics[name]):
            return f"{name} is {metrics[name]}"
    limit = config.divergence * math.log(config.model.vocab_size)
    if metrics.get("lm", 0.0) > limit:  # a step on the student's own answers has no cross-entropy
        return f"the LM loss is {metrics['lm']:.1f}, above {limit:.1f} ({config.divergence:g} times that of a uniform guess)"
    return ""


def save_batch(path: Path, batch: Batch) -> None:
    """Write the arrays of a batch under their paths, for example "inputs.ids"."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    arrays = {jax.tree_util.keystr(where, simple=True, separator="."): np.asarray(leaf) for where, leaf in leaves}
    np.savez_compressed(path, allow_pickle=False, **arrays)
