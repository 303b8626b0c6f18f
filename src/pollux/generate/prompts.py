"""Sequences as inputs of the compiled functions: one document a row, every size rounded up to a power of two."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pollux.tokens.pack import Capacities, to_batch
from pollux.tokens.sequence import Inputs, Modality, Sequence
from pollux.tokens.vocabulary import Vocabulary


def bucket(size: int, least: int = 1) -> int:
    """The smallest power of two that holds `size`, at least `least`."""
    return max(least, 1 << max(size - 1, 0).bit_length())


def plain(ids: Iterable[int]) -> Sequence:
    """A sequence of text ids alone."""
    array = np.array(list(ids), np.int32)
    zero = np.zeros_like(array)
    position = np.arange(len(array), dtype=np.int32)
    return Sequence(array, zero.astype(np.float32), position, zero, zero, np.full(len(array), Modality.TEXT, np.int8), zero.astype(np.int8))


def unconditional_prompt(vocabulary: Vocabulary) -> Sequence:
    """What a guided drawing is steered away from: a model turn without any prompt. Raises ValueError for a model that does not draw."""
    if "<draw>" not in vocabulary.specials:
        raise ValueError("guidance steers drawings, and this model does not draw: leave it at 1")
    return plain([vocabulary.specials["<bos>"], vocabulary.specials["<model>"]])


def padded_inputs(sequences: list[Sequence]) -> Inputs:
    """Inputs [B, T] with one sequence a row and soft slots for every row (G = B); T and the slots of each modality are powers of two."""
    soft: dict[str, tuple[int, int]] = {}
    for sequence in sequences:
        for name, part in sequence.soft.items():
            number, features = part.features.shape
            soft[name] = (max(bucket(number, 16), soft.get(name, (0, 0))[0]), features)
    length = bucket(max(map(len, sequences)), 16)
    targets = max(int(np.count_nonzero(sequence.target)) for sequence in sequences)
    return to_batch([[sequence] for sequence in sequences], Capacities(length, targets, soft), groups=len(sequences)).inputs
