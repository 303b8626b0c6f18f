"""What recipes share: a tokeniser that is trained the first time it is needed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary


def trained_vocabulary(folder: Path, texts: Callable[[], Iterable[str]], vocab_size: int) -> Vocabulary:
    """The vocabulary in `folder`; if there is none yet, one of at most `vocab_size` ids is trained on `texts()` and written there."""
    if not (folder / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary = Vocabulary(train_bpe(texts(), vocab_size))
        # Written beside its place and then moved, for two runs may begin at the same time.
        with tempfile.TemporaryDirectory(dir=folder) as part:
            vocabulary.save(part)
            os.replace(Path(part) / "tokenizer.json", folder / "tokenizer.json")
    return Vocabulary.load(folder)
