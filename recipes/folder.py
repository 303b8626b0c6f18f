"""A small model on your own folder of text, pictures with captions, recordings with transcripts, and videos.

    pollux train recipes/folder.py --folder my-folder --out runs/mine --steps 2000

One file in twenty is held out; the loss on those is shown beside that of the training. With `--drawing my-codec` (from
`pollux codec train my-folder --out my-codec`) it also learns to draw pictures from their captions.
"""

from collections.abc import Iterator
from pathlib import Path

from pollux.content import Text
from pollux.data.folder import FolderConfig, FolderSource
from pollux.data.mixture import DataConfig, SourceConfig
from pollux.model.family import tiny
from pollux.recipes import trained_vocabulary
from pollux.tokens.codec import Codec
from pollux.tokens.config import AudioTokens, ImageTokens, TokensConfig, VideoTokens
from pollux.train.config import TrainConfig


def recipe(folder: Path, drawing: Path | None = None, vocab_size: int = 4096) -> TrainConfig:
    """A run on a folder.

    Args:
        folder: What to train on.
        drawing: Folder of an image codec; without it the model does not draw.
        vocab_size: Most ids of the tokeniser, which is trained on the folder's text.
    """
    reading = FolderConfig(draw=drawing is not None, held_out=0.05)
    source = FolderSource(folder, reading)
    name = Path("runs") / "tokenizers" / folder.resolve().name
    tokenizer, vocabulary = trained_vocabulary(name, lambda: texts(source), vocab_size)
    codes = sum(Codec.load(drawing).levels) if drawing else 0
    tokens = TokensConfig(
        ImageTokens(max_tokens=64, standardise=True),
        AudioTokens(max_tokens=750),
        VideoTokens(max_frames=8, max_tokens=16, standardise=True),
    )
    return TrainConfig(
        model=tiny(vocabulary.size + codes, tokens),
        tokens=tokens,
        data=DataConfig((SourceConfig("folder", path=str(folder)),), folder=reading, prompt_dropout=0.1 if drawing else 0.0),
        vocabulary=str(tokenizer),
        codec=str(drawing or ""),
        rows=4,
        row_length=1024,
        targets_per_row=1024,
        soft_per_batch={"image": 2048, "audio": 1536, "video": 512},  # together as many as positions
        steps=2000,
        checkpoint_every=200,
    )


def texts(source: FolderSource) -> Iterator[str]:
    """Every text of the documents."""
    for index in range(source.length):
        document = source.document(index)
        for content in (*document.contents, *(content for branch in document.branches for content in branch)):
            yield from (part.text for part in content.parts if isinstance(part, Text))
