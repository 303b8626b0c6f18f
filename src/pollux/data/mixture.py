"""What a run reads and in which order: a weighted mixture of sources, with stages.

Position i of a run is a pure function of (seed, i): any position can be computed alone, so a run continues, or a step is
replayed, without reading what came before. Shares are exact by counting, not by chance, and a finite source is read once
per epoch in an order of its own. (grain's `MapDataset.mix` cuts weights to whole percents of the smallest one and knows no
stages; its `shuffle` gives seed s, epoch 1 the order of seed s + 1, epoch 0, and takes a millisecond an index in a small source.)
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from pollux.content import Document
from pollux.data.folder import FolderConfig, FolderSource
from pollux.data.source import BadFiles, Source, WorldSource
from pollux.data.world import TASKS, World, WorldConfig
from pollux.media import Limits
from pollux.plain import from_plain

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceConfig:
    """One source by name: a task of the procedural world, or a person's folder. Weights are shares of documents."""

    kind: Literal["world", "folder"]
    task: str = ""  # kind "world": picture, speech, clip, draw ...
    path: str = ""  # kind "folder"
    weight: float = 1.0

    def __post_init__(self):
        wanted, other = (self.task, self.path) if self.kind == "world" else (self.path, self.task)
        if self.kind not in ("world", "folder"):
            raise ValueError(f"source kind {self.kind!r} must be 'world' or 'folder'")
        if not wanted or other:
            raise ValueError(f"a {self.kind} source needs {'task' if self.kind == 'world' else 'path'} and nothing else, got {self}")
        if self.kind == "world" and self.task not in TASKS:
            raise ValueError(f"the world has no task {self.task!r}, only {', '.join(TASKS)}")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"the weight of source {wanted!r} must be a number >= 0, got {self.weight}")


@dataclass(frozen=True)
class Stage:
    """From this document of the run on, other weights, one per source in the order of the sources (0 = not read)."""

    from_document: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class DataConfig:
    """All that decides what a run reads, except its seed."""

    sources: tuple[SourceConfig, ...]
    stages: tuple[Stage, ...] = ()  # before the first stage the sources' own weights hold
    world: WorldConfig = field(default_factory=WorldConfig)  # of every source of kind "world"
    folder: FolderConfig = field(default_factory=FolderConfig)  # of every source of kind "folder"
    limits: Limits = field(default_factory=Limits)  # of a single medium; what exceeds them is treated like a bad file
    prompt_dropout: float = 0.0  # share of drawing documents without their prompt, for classifier-free guidance (0.1 is usual)
    input_corruption: float = 0.0  # share of a model turn's text that is read as random text, while it stays the target

    def __post_init__(self):
        if not self.sources:
            raise ValueError("data needs at least one source")
        for name in ("prompt_dropout", "input_corruption"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must be in [0, 1]")
        _schedule([source.weight for source in self.sources], self.stages)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DataConfig:
        """Inverse of to_json, also after a trip through a file. Raises ValueError naming an unknown field."""
        return from_plain(cls, data, "data")


class Mixture:
    """An endless run of documents from several sources.

    Within a stage, source i gives weight_i / sum of its documents: after every full cycle of the weights as whole numbers
    exactly, and never off by more than the number of sources in between. The n-th document taken from a finite source of
    length L is document permutation_e(n mod L) of it, e = n // L, with a permutation per (seed, source, epoch).
    """

    length: None = None

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], stages: Sequence[Stage] = (), seed: int = 0):
        if len(sources) != len(weights):
            raise ValueError(f"a mixture needs one weight per source, got {len(weights)} weights for {len(sources)} sources")
        for source in sources:
            if source.length == 0:
                raise ValueError(f"{source} has no documents")
        self.sources = tuple(sources)
        self._seed = seed
        self._starts, self._shares = _schedule(weights, stages)
        self._taken = [(0,) * len(sources)]  # documents taken from each source before a stage
        for stage in range(1, len(self._starts)):
            new = _counts(self._starts[stage] - self._starts[stage - 1], self._shares[stage - 1])
            self._taken.append(tuple(before + more for before, more in zip(self._taken[-1], new, strict=True)))

    def locate(self, position: int) -> tuple[int, int]:
        """(number of the source, index in it) of the document at a position >= 0 of the run."""
        stage = bisect.bisect_right(self._starts, position) - 1
        step = position - self._starts[stage]
        before, after = _counts(step, self._shares[stage]), _counts(step + 1, self._shares[stage])
        number = next(i for i, count in enumerate(before) if after[i] != count)
        taken = self._taken[stage][number] + before[number]
        length = self.sources[number].length
        if length is None:
            return number, taken
        epoch, index = divmod(taken, length)
        return number, _permute(index, length, _round_keys(self._seed, number, epoch))

    def document(self, position: int) -> Document:
        number, index = self.locate(position)
        return self.sources[number].document(index)

    def origin(self, position: int) -> str:
        number, index = self.locate(position)
        return self.sources[number].origin(index)

    def bad_files(self, position: int) -> BadFiles:
        """What to do if the document at a position is no good."""
        return self.sources[self.locate(position)[0]].bad_files


def open_mixture(config: DataConfig, seed: int) -> Mixture:
    """Opens every source of a config and synthesises the speech it needs. Raises ValueError if a folder is missing or empty."""
    if any(source.task in ("speech", "spoken_question", "conversation") for source in config.sources):
        World(config.world).prepare_speech()  # of a World of its own: the one below goes to worker processes without the samples
    world = World(config.world)
    sources: list[Source] = []
    for source in config.sources:
        sources.append(WorldSource(world, source.task) if source.kind == "world" else _open_folder(source.path, config.folder))
    return Mixture(sources, [source.weight for source in config.sources], config.stages, seed)


def _open_folder(path: str, config: FolderConfig) -> FolderSource:
    source = FolderSource(path, config)
    if source.left_out:
        (name, reason), number = next(iter(source.left_out.items())), len(source.left_out)
        logger.warning("%d files of %s are left out, which `pollux data %s` lists; the first is %s: %s", number, path, path, name, reason)
    return source


def _schedule(weights: Sequence[float], stages: Sequence[Stage]) -> tuple[list[int], list[tuple[int, ...]]]:
    """Starts of all stages, and their weights as the smallest whole numbers in the same ratio."""
    starts = [0] + [stage.from_document for stage in stages]
    if any(later <= earlier for earlier, later in zip(starts, starts[1:], strict=False)):
        raise ValueError(f"stages must begin after document 0, each later than the one before, got {starts[1:]}")
    shares = []
    for values in [tuple(weights), *(stage.weights for stage in stages)]:
        if len(values) != len(weights):
            raise ValueError(f"a stage needs one weight per source ({len(weights)}), got {values}")
        if not all(math.isfinite(value) and value >= 0 for value in values) or not any(values):
            raise ValueError(f"weights must be numbers >= 0 and not all 0, got {values}")
        exact = [Fraction(str(value)) for value in values]  # 0.1 means one tenth, not the nearest binary fraction
        scale = math.lcm(*(value.denominator for value in exact))
        whole = [int(value * scale) for value in exact]
        shares.append(tuple(value // math.gcd(*whole) for value in whole))
    return starts, shares


def _counts(k: int, shares: tuple[int, ...]) -> tuple[int, ...]:
    """How many of the first k documents each source gives; from k to k + 1 exactly one of them grows, by one."""
    counts, left, remaining = [], k, sum(shares)
    for share in shares:
        after = left * (remaining - share) // remaining if remaining else 0
        counts.append(left - after)
        left, remaining = after, remaining - share
    return tuple(counts)


@functools.lru_cache(maxsize=1024)
def _round_keys(seed: int, source: int, epoch: int) -> tuple[int, ...]:
    return tuple(int(key) for key in np.random.SeedSequence((seed, source, epoch)).generate_state(6, np.uint64))


def _permute(index: int, length: int, keys: tuple[int, ...]) -> int:
    """Where a random permutation of range(length) sends an index, without making the permutation.

    A Feistel network, one round a key, permutes the numbers of 2 * half bits, the smallest such range that holds `length`;
    walking on until the result is below `length` (at most 4 steps on average) leaves a permutation (Black & Rogaway 2002).
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for key in keys:
            mixed = ((right ^ key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ (mixed >> 32 & mask)
        index = left << half | right
        if index < length:
            return index
