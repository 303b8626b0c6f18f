"""The loss on what a run never reads: a fixed set of documents from the held-out share of its folders.

The procedural world is endless, so there the training loss is already one on fresh documents.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from pollux.data.source import Source
from pollux.media import MediaError
from pollux.model.params import Params
from pollux.tokens.interleave import PictureCodec, encode
from pollux.tokens.pack import Packer, sizes
from pollux.tokens.sequence import Batch
from pollux.tokens.sequence import Sequence as TokenSequence
from pollux.tokens.vocabulary import Vocabulary
from pollux.train import objective
from pollux.train.config import TrainConfig
from pollux.train.metrics import HELD_OUT

MOST_BATCHES = 8  # a forward pass each, at every measurement

logger = logging.getLogger(__name__)


class HeldOut:
    """Batches of held-out documents, encoded once: all of them or, of many, a choice by the seed. `documents` is their number."""

    def __init__(self, config: TrainConfig, sources: Sequence[Source], vocabulary: Vocabulary, codec: PictureCodec | None):
        self.documents = 0
        self._config, self._vocabulary, self._codec = config, vocabulary, codec
        self._batches = list(self._pack([source.held_out() for source in sources]))
        self._metrics = jax.jit(lambda params, batch: objective.loss(params, config, batch)[1])

    def losses(self, params: Params) -> dict[str, float]:
        """Mean cross-entropy in nats a target: held_out_text and held_out_draw, each where there are targets of it."""
        sums: defaultdict[str, float] = defaultdict(float)
        for batch in self._batches:
            metrics = {name: float(value) for name, value in jax.device_get(self._metrics(params, batch)).items()}
            for name in ("text", "draw"):
                sums[name] += metrics[name] * metrics[f"{name}_targets"]
                sums[f"{name}_targets"] += metrics[f"{name}_targets"]
        return {HELD_OUT + name: sums[name] / sums[f"{name}_targets"] for name in ("text", "draw") if sums[f"{name}_targets"]}

    def _pack(self, sources: Sequence[Source]) -> Iterator[Batch]:
        config = self._config
        packer = Packer(config.rows, config.row_length, config.targets_per_row, config.soft_per_batch, config.tokens)
        full = waiting = 0
        for sequence in self._sequences(sources):
            pieces = [piece for piece in packer.split(sequence) if sizes(piece) <= packer.capacities.limits]  # none: too large
            for piece in pieces:
                if not packer.add(piece):
                    yield packer.take()
                    full, waiting = full + 1, 0
                    if full == MOST_BATCHES:
                        return
                    packer.add(piece)
                waiting += 1
            self.documents += bool(pieces)
        if waiting:
            yield packer.take()

    def _sequences(self, sources: Sequence[Source]) -> Iterator[TokenSequence]:
        """Every document once, in an order by the seed; those that cannot be read are left out or end the run."""
        places = [(source, index) for source in sources for index in range(source.length or 0)]
        for i in np.random.default_rng(self._config.seed).permutation(len(places)):
            source, index = places[i]
            try:
                yield encode(source.document(index), self._vocabulary, self._config.tokens, self._codec, self._config.data.limits)
            except ValueError as error:
                if not isinstance(error, MediaError) or source.bad_files == "stop":
                    raise ValueError(f"{source.origin(index)}: {error}") from error
                logger.warning("left out %s: %s", source.origin(index), error)
