"""What recipes share: tokenisers and image codecs that are made the first time they are needed, and students of larger models.

The name of the folder of what is made ends with a fingerprint of what it is made from, so a later run finds what fits it and overwrites
nothing that an earlier one, to be resumed, still reads.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pollux.data.folder import FolderConfig
from pollux.data.mixture import DataConfig, SourceConfig
from pollux.model import family
from pollux.model.folder import load_config
from pollux.model.params import count
from pollux.tokens.codec import Codec, CodecConfig, CodecTraining, Progress
from pollux.tokens.codec import train as train_codec
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary
from pollux.train.config import DistillConfig, OptimizerConfig, ScheduleConfig, TrainConfig

STEP_TOKENS = 2**18  # of a student's optimiser step
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022; a small model that is used much is worth more


def trained_vocabulary(folder: Path, texts: Callable[[], Iterable[str]], vocab_size: int) -> tuple[Path, Vocabulary]:
    """A vocabulary of at most `vocab_size` ids, trained on `texts()`, and the folder that holds it, `folder`-SIZE-FINGERPRINT."""
    folder = folder.with_name(f"{folder.name}-{vocab_size}-{fingerprint(texts())}")
    _make(folder, lambda part: Vocabulary(train_bpe(texts(), vocab_size)).save(part))
    return folder, Vocabulary.load(folder)


def trained_codec(
    folder: Path,
    pictures: Callable[[], Iterator[np.ndarray]],
    about: str,
    config: CodecConfig,
    training: CodecTraining,
    progress: Callable[[Progress], None],
) -> tuple[Path, Codec]:
    """An image codec trained on the batches `pictures()`, which `about` describes, and the folder that holds it, `folder`-FINGERPRINT."""
    folder = folder.with_name(f"{folder.name}-{fingerprint([about, repr(config), repr(training)])}")
    _make(folder, lambda part: train_codec(pictures(), config, training, progress).save(part))
    return folder, Codec.load(folder)


def fingerprint(texts: Iterable[str]) -> str:
    """The same for the same texts, another for others."""
    digest = hashlib.blake2b(digest_size=6)
    for text in texts:
        digest.update(len(text).to_bytes(8, "big") + text.encode())
    return digest.hexdigest()


def _make(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill the folder, unless it is there; beside its place and then moved, for it may be stopped or two runs begin at once."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as part:
        made = Path(part) / "made"
        made.mkdir()
        write(made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # the other run was not first
                raise


def student(size: str, teacher: Path, folders: Sequence[Path]) -> TrainConfig:
    """A named size of the family, taught by a larger model while both read folders of documents in equal shares.

    The student takes over the teacher's ids, image codec and way of reading media, and learns from its 64 most probable ids. Rates and the
    size of a step are our choice and were never run to their end.
    """
    there, tokens = load_config(teacher)
    model = family.model(size, there.vocab_size, tokens)
    length = min(4096, there.max_positions)
    return TrainConfig(
        model=model,
        tokens=tokens,
        data=DataConfig(tuple(SourceConfig("folder", path=str(folder)) for folder in folders), folder=FolderConfig(held_out=0.001)),
        vocabulary=str(teacher),
        codec=str(teacher) if (teacher / "codec.json").is_file() else "",
        rows=1,
        row_length=length,
        targets_per_row=length,
        soft_per_batch={
            "image": min(length, 2 * tokens.image.max_tokens),
            "audio": min(length, 2 * tokens.audio.max_tokens),
            "video": min(length, tokens.video.max_frames * tokens.video.max_tokens),
        },
        accumulation=STEP_TOKENS // length,
        steps=TOKENS_PER_PARAMETER * count(model) // STEP_TOKENS,
        optimizer=OptimizerConfig(learning_rate=4e-4, matrix_learning_rate=4e-4, weight_decay=0.1),
        schedule=ScheduleConfig(warmup=1000),
        distill=DistillConfig(str(teacher), top_k=64),
        compute="bfloat16",
        workers=8,
        evaluate_every=1000,
    )
