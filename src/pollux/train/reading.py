"""What a run reads: the vocabulary, codec and batches that its config names, and the batch of any earlier step again.

The loop writes the state of the data before each batch to OUT/data_states.jsonl; with OUT/config.json it is all that a replay needs.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from pollux.data.batches import Batches, logged_state
from pollux.tokens.sequence import Batch
from pollux.tokens.vocabulary import Vocabulary
from pollux.train.config import TrainConfig

if TYPE_CHECKING:
    from pollux.tokens.codec import Codec

STATES = "data_states.jsonl"
_SOFT = ("image", "audio", "video")


def written_config(out: Path) -> TrainConfig:
    """The config of the run in `out`. Raises ValueError that names the file if it is none."""
    path = out / "config.json"
    try:
        return TrainConfig.from_json(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path} is not the config of a run: {error}") from error


def open_vocabulary(config: TrainConfig) -> tuple[Vocabulary, Codec | None]:
    """The vocabulary of a run, image codes included, and its codec if it draws. Raises ValueError if the model has too few ids."""
    codec = None
    if config.codec:
        from pollux.tokens.codec import Codec  # a run that does not draw does not wait for it

        codec = Codec.load(config.codec)
    vocabulary = Vocabulary.load(config.vocabulary, codec.levels if codec else ())
    if vocabulary.size > config.model.vocab_size:
        raise ValueError(f"the vocabulary has {vocabulary.size} ids, but model.vocab_size is {config.model.vocab_size}")
    return vocabulary, codec


def open_batches(config: TrainConfig, vocabulary: Vocabulary, codec: Codec | None) -> Batches:
    """The batches of a run from its beginning; a step reads `config.accumulation` of them."""
    return Batches(
        config.data,
        config.tokens,
        vocabulary,
        codec,
        rows=config.rows,
        row_length=config.row_length,
        targets_per_row=config.targets_per_row,
        soft_per_batch=config.soft_per_batch,
        seed=config.seed,
        workers=config.workers,
    )


def stack(batches: Sequence[Batch]) -> Batch:
    """What one step reads: leaves [accumulation, ...]."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def reads_own_answers(config: TrainConfig, step: int) -> bool:
    """Whether a step is one of the share that reads what the student writes itself (on_policy.py)."""
    return np.random.default_rng((config.seed, 2, step)).random() < config.distill.on_policy


def replay(out: Path, step: int) -> tuple[Batch, Vocabulary]:
    """What a step (1 = the first) of the run in `out` read, exactly, and the vocabulary that spells it out.

    Raises ValueError if `out` is no run, did not come to that step, or read the student's own answers there.
    """
    if not (out / STATES).is_file():
        raise ValueError(f"{out} is not the folder of a run: it has no {STATES}")
    config = written_config(out)
    if reads_own_answers(config, step):
        raise ValueError(f"step {step} of {out} read answers that the student wrote itself, which are not kept")
    vocabulary, codec = open_vocabulary(config)
    batches = open_batches(config, vocabulary, codec)
    logged = (logged_state(out / STATES, (step - 1) * config.accumulation + i) for i in range(config.accumulation))
    states = [state for state in logged if state is not None]
    if len(states) < config.accumulation:
        raise ValueError(f"the run in {out} has no step {step} so far; its first step is 1")
    return stack([batches.replay(state) for state in states]), vocabulary


def spell(batch: Batch, vocabulary: Vocabulary) -> Iterator[str]:
    """One line for every branch of every document of a batch: its text, and media and drawings as their number of tokens."""
    ids, segments, branches = (
        np.asarray(x).reshape(-1, x.shape[-1]) for x in (batch.inputs.ids, batch.inputs.segment, batch.inputs.branch)
    )
    for row, (row_ids, row_segments, row_branches) in enumerate(zip(ids, segments, branches, strict=True)):
        for segment in range(1, row_segments.max() + 1):
            here = row_segments == segment
            for branch in dict.fromkeys(row_branches[here].tolist()):
                text = _spell(row_ids[here & (row_branches == branch)], vocabulary)
                yield f"row {row}, document {segment}, branch {branch}: {text}" if branch else f"row {row}, document {segment}: {text}"


def _spell(ids: np.ndarray, vocabulary: Vocabulary) -> str:
    """Text of ids, every run of soft tokens or code digits as [number and what]."""
    pieces = []
    soft = {vocabulary.specials.get(f"<{name}_soft>"): name for name in _SOFT}
    for kind, run in itertools.groupby(ids.tolist(), lambda i: "code" if i >= vocabulary.code_offset else soft.get(i, "text")):
        part = list(run)
        pieces.append(vocabulary.decode(part) if kind == "text" else f"[{len(part)} {kind}]")
    return "".join(pieces)
