"""The batches of a run: positions of a mixture -> documents -> sequences -> packed rows, ready for a training step.

Batch n is a function of (config, seed, n). The state between two batches is small plain JSON, so that a run continues exactly
where it was, with any number of worker processes, and a suspicious step is replayed from the state before it.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags
from grain.experimental import ThreadPrefetchDatasetIterator

from pollux.data.mixture import DataConfig, Mixture, open_mixture
from pollux.data.transforms import corrupt_inputs, drop_prompt
from pollux.media import Limits, MediaError
from pollux.tokens.config import TokensConfig
from pollux.tokens.interleave import PictureCodec, encode
from pollux.tokens.pack import Packer, sizes
from pollux.tokens.sequence import Batch, Sequence
from pollux.tokens.vocabulary import Vocabulary

LOOK_AHEAD = 8  # sequences that may wait for the next batch while shorter ones fill the rows
GIVE_UP = 100  # documents in a row that cannot be used
_PROMPT, _INPUTS = 0, 1  # what a random generator is for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Unusable:
    reason: str


@dataclass(frozen=True)
class _Encoder:
    """Position -> Sequence, the part of the work that worker processes can do."""

    mixture: Mixture
    vocabulary: Vocabulary
    tokens: TokensConfig
    codec: PictureCodec | None
    limits: Limits
    prompt_dropout: float
    seed: int

    def __call__(self, position: int) -> Sequence | _Unusable:
        try:
            document = self.mixture.document(position)
            if self.prompt_dropout:
                document = drop_prompt(document, self.prompt_dropout, np.random.default_rng((self.seed, _PROMPT, position)))
            return encode(document, self.vocabulary, self.tokens, self.codec, self.limits)
        except MediaError as error:
            return _Unusable(str(error))
        except ValueError as error:
            raise ValueError(f"{self.mixture.origin(position)}: {error}") from error


class _EncodedDataset(grain.MapDataset[Sequence | _Unusable]):
    """The encoder as grain's worker processes want it."""

    def __init__(self, encoder: _Encoder):
        super().__init__()
        self._encoder = encoder

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index):
        return self.slice(index) if isinstance(index, slice) else self._encoder(index)


class Batches(grain.IterDataset[Batch]):
    """An endless grain dataset of Batch (numpy arrays); its iterators have `get_state`, `set_state` and `close`.

    data, seed: what is read, in which order. rows, row_length, targets_per_row, soft_per_batch: see Packer. prefetch: batches made
    ahead in a background thread, 0 = none. workers: processes that read and encode, 0 = none; batches are the same with any
    number. Errors of a thread or process are raised by `next`. `left_out` maps documents that could not be used to the
    reason; each is also logged once.
    """

    def __init__(
        self,
        data: DataConfig,
        tokens: TokensConfig,
        vocabulary: Vocabulary,
        codec: PictureCodec | None = None,
        *,
        rows: int,
        row_length: int,
        targets_per_row: int,
        soft_per_batch: Mapping[str, int],
        seed: int = 0,
        prefetch: int = 2,
        workers: int = 0,
    ):
        super().__init__()
        self.mixture = open_mixture(data, seed)
        self.encoder = _Encoder(self.mixture, vocabulary, tokens, codec, data.limits, data.prompt_dropout, seed)
        self.input_corruption = data.input_corruption
        self.packer_arguments = (rows, row_length, targets_per_row, soft_per_batch, tokens)
        self.prefetch, self.workers = prefetch, workers
        self.left_out: dict[str, str] = {}

    def __iter__(self) -> grain.DatasetIterator[Batch]:
        batches = BatchIterator(self, self.workers)
        return ThreadPrefetchDatasetIterator(batches, self.prefetch) if self.prefetch else batches

    def replay(self, state: dict[str, Any]) -> Batch:
        """The batch that came after an iterator was in this state, see `log_state`."""
        batches = BatchIterator(self, workers=0)
        batches.set_state(state)
        return next(batches)


class BatchIterator(grain.DatasetIterator[Batch]):
    """Fills batch after batch, without a thread of its own.

    The state: "step", the number of the next batch; "next", [position, piece] of the first sequence not yet read, where a long text
    is several pieces; "waiting", the same of those that were read but found no room; "lengths", the sizes of the sources.
    """

    def __init__(self, batches: Batches, workers: int):
        super().__init__()
        self._batches, self._workers = batches, workers
        self._packer = Packer(*batches.packer_arguments)
        self._encoded: Iterator[Sequence | _Unusable] | None = None  # from the document after _pieces on
        self._processes: grain.DatasetIterator | None = None  # the same object as _encoded, if processes make it
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._pieces: list[Sequence] = []  # of the document at _position
        self._step = self._position = self._piece = 0

    def __next__(self) -> Batch:
        before, self._waiting = self._waiting, []
        for entry in before:
            self._add(*entry)
        while len(self._waiting) < LOOK_AHEAD:
            self._add(*self._read())
        batch = self._packer.take()
        if self._batches.input_corruption:
            generator = np.random.default_rng((self._batches.encoder.seed, _INPUTS, self._step))
            batch = corrupt_inputs(batch, self._batches.input_corruption, self._batches.encoder.vocabulary, generator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        waiting = [[position, piece] for position, piece, _ in self._waiting]
        return {"step": self._step, "next": [self._position, self._piece], "waiting": waiting, "lengths": self._lengths()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state. Reads the waiting documents again; raises ValueError if the sources have changed since then."""
        if state["lengths"] != self._lengths():
            raise ValueError(
                f"the sources had {state['lengths']} documents when the run stopped and have {self._lengths()} now, so that its order is"
                " lost: restore the files or start a new run"
            )
        self._close_encoded()
        self._step = state["step"]
        self._waiting = []
        for position, piece in state["waiting"]:
            pieces = self._usable(position, self._batches.encoder(position))
            if piece >= len(pieces):
                raise ValueError(f"{self._batches.mixture.origin(position)} could be used when the run stopped and now cannot: restore it")
            self._waiting.append((position, piece, pieces[piece]))
        self._position, self._piece = state["next"]
        self._pieces = []

    def close(self) -> None:
        """Ends the worker processes."""
        self._close_encoded()
        super().close()

    def _lengths(self) -> list[int | None]:
        return [source.length for source in self._batches.mixture.sources]

    def _add(self, position: int, piece: int, sequence: Sequence) -> None:
        if not self._packer.add(sequence):
            self._waiting.append((position, piece, sequence))

    def _read(self) -> tuple[int, int, Sequence]:
        """The next sequence of the run, passing over documents that cannot be used."""
        first = self._position
        while not self._pieces:
            if self._encoded is None:
                self._encoded = self._open(self._position)
            self._pieces = self._usable(self._position, next(self._encoded))
            self._position += not self._pieces
            if self._position - first >= GIVE_UP:
                reason = list(self._batches.left_out.items())[-1]
                raise ValueError(f"{GIVE_UP} documents in a row cannot be used, the last is {': '.join(reason)}")
        entry = self._position, self._piece, self._pieces[self._piece]
        self._piece += 1
        if self._piece == len(self._pieces):
            self._position, self._piece, self._pieces = self._position + 1, 0, []
        return entry

    def _open(self, start: int) -> Iterator[Sequence | _Unusable]:
        """Encoded documents from a position on."""
        if self._workers == 0:
            return map(self._batches.encoder, itertools.count(start))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's processes ask for command-line flags, which pollux does not have
        one_thread = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        documents = _EncodedDataset(self._batches.encoder).slice(slice(start, None)).to_iter_dataset(one_thread)
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=8)
        self._processes = iter(documents.mp_prefetch(options))
        return self._processes

    def _usable(self, position: int, encoded: Sequence | _Unusable) -> list[Sequence]:
        """The pieces of a document, none if it is left out. Raises ValueError if it cannot be used and the policy is to stop."""
        if isinstance(encoded, Sequence):
            pieces, limits = self._packer.split(encoded), self._packer.capacities.limits
            if len(pieces) > 1 or sizes(encoded) <= limits:
                return pieces
            encoded = _Unusable(f"it needs {dict(sizes(encoded))} but there is room for {dict(limits)}: shorten it or enlarge the batch")
        origin = self._batches.mixture.origin(position)
        if self._batches.mixture.bad_files(position) == "stop":
            raise ValueError(f"{origin}: {encoded.reason}")
        if origin not in self._batches.left_out:  # and not in an epoch before
            logger.warning("left out %s: %s", origin, encoded.reason)
            self._batches.left_out[origin] = encoded.reason
        return []

    def _close_encoded(self) -> None:
        if self._processes is not None:
            self._processes.close()
        self._encoded = self._processes = None


def log_state(file: Path, state: dict[str, Any]) -> None:
    """Appends the state before a step to a log of JSON lines."""
    with file.open("a") as lines:
        lines.write(json.dumps(state) + "\n")


def logged_state(file: Path, step: int) -> dict[str, Any] | None:
    """The state before a step, for `Batches.replay`; None if the log does not have it. Raises ValueError if the log is damaged."""
    found = None
    with file.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                state = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number} is damaged: it is not JSON") from error
            if state["step"] == step:
                found = state
    return found
