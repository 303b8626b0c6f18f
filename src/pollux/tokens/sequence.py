"""The one sequence: what `tokens/` hands to the model, and the batch that a step consumes.

A `Sequence` is one tokenised document (numpy, host side). A `Batch` is a set of packed rows (a pytree, any array type).
Nothing after this module knows about files, codecs or turns.

Branches. A document is a shared prefix (branch 0) and any number of branches. Branch b > 0 sees the prefix and
itself; branch b < 0 sees itself only (a text-only copy for the contrastive loss). So ten questions about one
picture pay for its tokens once. Every branch starts with a token that is never a target, hence each target has its
predecessor inside its own branch.

Shapes: B rows, T tokens a row, M targets a row, G groups of B/G neighbouring rows, N soft tokens of one modality a group, F features
of that modality.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

Array = Any  # numpy.ndarray or jax.Array


class Modality(enum.IntEnum):
    """What a position holds; the loss is reported per modality."""

    TEXT = 0
    IMAGE = 1
    AUDIO = 2
    VIDEO = 3
    DRAW = 4  # image codes, the only modality besides text that is predicted


@dataclass(frozen=True)
class Soft:
    """Soft tokens of one modality in one document: raw features that an embedder of the model maps to width D."""

    features: np.ndarray  # float32 [N, F]
    index: np.ndarray  # int32 [N], position in the sequence
    coord: np.ndarray  # int32 [N, 2], (row, column) of a patch; zeros for audio


@dataclass(frozen=True)
class Sequence:
    """One tokenised document; all arrays have length T."""

    ids: np.ndarray  # int32; a soft position holds the placeholder id of its modality
    target: np.ndarray  # float32; weight of predicting ids[t] from its past; 0 for inputs
    position: np.ndarray  # int32; RoPE position; a branch continues from the end of the prefix
    branch: np.ndarray  # int32; see the module docstring
    group: np.ndarray  # int32; 0 = causal, g > 0: positions of one group see each other both ways
    modality: np.ndarray  # int8, a Modality
    pool: np.ndarray  # int8; 1 = media side, 2 = text side of a contrastive pair, 0 = neither
    soft: dict[str, Soft] = field(default_factory=dict)  # keys: "image", "audio", "video"

    def __len__(self) -> int:
        return len(self.ids)


def _pytree(cls):
    return jax.tree_util.register_dataclass(cls)


@_pytree
@dataclass(frozen=True)
class SoftBatch:
    """Soft tokens of one modality; the rows of a group share its slots, so that few stay empty. Packing makes one group, G = 1."""

    features: Array  # float32 [G, N, F]
    index: Array  # int32 [G, N] into the B/G * T positions of the group, row after row; B/G * T marks an unused slot
    coord: Array  # int32 [G, N, 2]


@_pytree
@dataclass(frozen=True)
class Inputs:
    """What the decoder reads. All [B, T] int32; G is the same for all modalities."""

    ids: Array
    position: Array
    segment: Array  # 0 = padding, s > 0: the s-th document of the row
    branch: Array
    group: Array
    soft: dict[str, SoftBatch]


@_pytree
@dataclass(frozen=True)
class Targets:
    """What the losses read. Only positions that predict something are listed, so the unembedding is paid for those alone."""

    index: Array  # int32 [B, M], position t whose hidden state predicts the target
    ids: Array  # int32 [B, M], the token that follows
    weight: Array  # float32 [B, M], 0 = unused slot
    modality: Array  # int32 [B, M]
    pool: Array  # int32 [B, T], see Sequence.pool; pairs are matched by (row, segment)


@_pytree
@dataclass(frozen=True)
class Batch:
    inputs: Inputs
    targets: Targets
