"""Documents share rows of fixed size: first-fit packing, and rows of sequences to a Batch.

Capacities are static, so that one compiled step serves every batch: a sequence goes into the first row where its tokens and targets
fit, if the batch has room for its soft tokens. B rows, T tokens, M targets, G groups, N soft tokens of F features (see sequence.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pollux.tokens.config import TokensConfig
from pollux.tokens.sequence import Batch, Inputs, Modality, Sequence, SoftBatch, Targets


@dataclass(frozen=True)
class Capacities:
    """What one row can hold, T tokens and M targets, and what a group of rows shares, (N, F) of each modality."""

    row_length: int
    targets: int
    soft: Mapping[str, tuple[int, int]]

    @cached_property
    def limits(self) -> Counter[str]:
        """The most that one sequence can need, in the terms of `sizes`."""
        return Counter(tokens=self.row_length, targets=self.targets, **{name: number for name, (number, _) in self.soft.items()})


class Packer:
    """Collects sequences for one batch after another.

    The usual round: `add` sequences until one does not fit, `take` the batch, `add` that sequence again. `split` first, if
    documents may be longer than a row. soft_per_batch gives N per modality; a modality that is not in it, or has 0, is refused.
    """

    def __init__(self, rows: int, row_length: int, targets_per_row: int, soft_per_batch: Mapping[str, int], config: TokensConfig):
        if rows < 1 or row_length < 2 or targets_per_row < 1:
            raise ValueError(f"a batch of {rows} rows of {row_length} tokens and {targets_per_row} targets is too small to learn from")
        soft = {name: (number, getattr(config, name).features) for name, number in soft_per_batch.items() if number}
        self.capacities = Capacities(row_length, targets_per_row, soft)
        self._rows: list[list[Sequence]] = [[] for _ in range(rows)]
        self._used: list[Counter[str]] = [Counter() for _ in range(rows)]
        self._used_soft: Counter[str] = Counter()

    def add(self, sequence: Sequence) -> bool:
        """Put a sequence into the first row with room; False if there is none and it must wait for the next batch.

        Raises ValueError with the sizes if it would not fit into an empty batch either.
        """
        need, limits = sizes(sequence), self.capacities.limits
        if not need <= limits:
            raise ValueError(f"a document needs {dict(need)}, there is room for {dict(limits)}: shorten it or enlarge the batch")
        soft = Counter({name: need[name] for name in sequence.soft})
        for row, used in zip(self._rows, self._used, strict=True):
            if used + self._used_soft + need <= limits:
                row.append(sequence)
                used.update(need - soft)
                self._used_soft.update(soft)
                return True
        return False

    def take(self) -> Batch:
        """The batch of what was added, and a fresh start."""
        batch = to_batch(self._rows, self.capacities, groups=1)
        self._rows = [[] for _ in self._rows]
        self._used = [Counter() for _ in self._used]
        self._used_soft = Counter()
        return batch

    def split(self, sequence: Sequence) -> list[Sequence]:
        """A pure text sequence (one branch, no media) that is too long for a row, as pieces that are not; any other as it is.

        Neighbouring pieces share one token, so that every target still follows its predecessor. Positions restart in each.
        """
        if sequence.soft or sequence.branch.any() or (sequence.modality != Modality.TEXT).any():
            return [sequence]
        pieces, start, last = [], 0, len(sequence) - 1
        targets = np.cumsum(sequence.target > 0)  # targets up to and including each token
        while True:
            room = int(np.searchsorted(targets, targets[start] + self.capacities.targets, side="right"))
            stop = min(start + self.capacities.row_length, room, last + 1)
            pieces.append(_piece(sequence, start, stop))
            if stop > last:
                return pieces
            start = stop - 1


def sizes(sequence: Sequence) -> Counter[str]:
    """What a sequence takes: "tokens", "targets", and soft tokens by modality."""
    soft = {name: len(soft.index) for name, soft in sequence.soft.items()}
    return Counter(tokens=len(sequence), targets=int(np.count_nonzero(sequence.target)), **soft)


def single(sequence: Sequence, length: int | None = None) -> Batch:
    """A batch of one row with one sequence, no larger than needed, or padded to `length` tokens."""
    soft = {name: soft.features.shape for name, soft in sequence.soft.items()}
    return to_batch([[sequence]], Capacities(length or len(sequence), sizes(sequence)["targets"], soft), groups=1)


def to_batch(rows: list[list[Sequence]], capacities: Capacities, groups: int) -> Batch:
    """Rows of sequences as arrays, in `groups` groups of equally many rows that share their soft slots.

    Padding has id 0, segment 0 and weight 0; unused soft slots have index B/G T. The two-way groups of the documents of a row are
    renumbered to differ. Raises ValueError if a row does not fit.
    """
    B, T, M, G = len(rows), capacities.row_length, capacities.targets, groups
    assert B % G == 0
    rows_per_group = B // G
    ids, position, segment, branch, group, pool = np.zeros((6, B, T), np.int32)
    target_index, target_ids, target_modality = np.zeros((3, B, M), np.int32)
    weight = np.zeros((B, M), np.float32)
    soft = {
        name: SoftBatch(np.zeros((G, N, F), np.float32), np.full((G, N), rows_per_group * T, np.int32), np.zeros((G, N, 2), np.int32))
        for name, (N, F) in capacities.soft.items()
    }
    used: Counter[str] = Counter()
    for b, row in enumerate(rows):
        g, place = divmod(b, rows_per_group)
        used = Counter({name: used[name] for name in soft}) if place else Counter()  # soft slots: of the group so far
        num_groups = 0
        total = sum(map(sizes, row), used)
        if not total <= capacities.limits:
            raise ValueError(f"row {b} needs {dict(total)} but there is room for {dict(capacities.limits)}")
        for number, sequence in enumerate(row, start=1):
            start, m = used["tokens"], used["targets"]
            here = slice(start, start + len(sequence))
            ids[b, here], position[b, here], branch[b, here] = sequence.ids, sequence.position, sequence.branch
            segment[b, here], pool[b, here] = number, sequence.pool
            group[b, here] = np.where(sequence.group > 0, sequence.group + num_groups, 0)
            predicted = np.flatnonzero(sequence.target)
            assert (sequence.branch[predicted] == sequence.branch[predicted - 1]).all() and not sequence.target[:1].any()
            slots = slice(m, m + len(predicted))
            target_index[b, slots], target_ids[b, slots] = predicted - 1 + start, sequence.ids[predicted]
            weight[b, slots], target_modality[b, slots] = sequence.target[predicted], sequence.modality[predicted]
            for name, part in sequence.soft.items():
                slots = slice(used[name], used[name] + len(part.index))
                out = soft[name]
                out.features[g, slots], out.index[g, slots], out.coord[g, slots] = part.features, part.index + start + place * T, part.coord
            num_groups += int(sequence.group.max(initial=0))
            used.update(sizes(sequence))
    inputs = Inputs(ids, position, segment, branch, group, soft)
    return Batch(inputs, Targets(target_index, target_ids, weight, target_modality, pool))


def _piece(sequence: Sequence, start: int, stop: int) -> Sequence:
    target = sequence.target[start:stop].copy()
    target[:1] = 0  # its predecessor is in the piece before
    fields = ("ids", "branch", "group", "modality", "pool")
    return replace(
        sequence,
        target=target,
        position=np.arange(stop - start, dtype=np.int32),
        **{name: getattr(sequence, name)[start:stop] for name in fields},
    )
