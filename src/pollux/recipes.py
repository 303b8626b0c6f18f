"""What recipes share: tokenisers and image codecs that are made the first time they are needed.

The name of their folder ends with a fingerprint of what they are made from, so a later run finds what fits it and overwrites nothing
that an earlier one, to be resumed, still reads.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from pollux.tokens.codec import Codec, CodecConfig, CodecTraining, Progress
from pollux.tokens.codec import train as train_codec
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary


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
