"""`pollux tokens`: what a file costs in tokens, per modality."""

from __future__ import annotations

from pathlib import Path

import tyro

from pollux.content import Audio, Content, Document, Image, Text, Video, read_jsonl
from pollux.media import MediaError, media_kind
from pollux.model.folder import load_config
from pollux.tokens.codec import Codec
from pollux.tokens.config import TokensConfig
from pollux.tokens.interleave import count, encode
from pollux.tokens.sequence import Modality
from pollux.tokens.text import MINIMUM_SIZE, train_bpe
from pollux.tokens.vocabulary import Vocabulary

PARTS = {"image": Image, "audio": Audio, "video": Video}


def tokens(files: tyro.conf.Positional[tuple[Path, ...]], /, model: Path | None = None) -> None:
    """Count the tokens of files per modality, the markers around each medium included.

    Example: pollux tokens photo.png talk.wav notes.md --model runs/quickstart/model

    Args:
        files: Text, image, sound or video files, or JSON lines of documents.
        model: Folder of the model whose tokeniser and resolutions count; without it every UTF-8 byte counts as one text token.
    """
    if not files:
        raise ValueError("no files were given; example: pollux tokens photo.png")
    config, codec, vocabulary = TokensConfig(), None, None
    if model is not None:
        config = load_config(model)[1]
        codec = Codec.load(model) if (model / "codec.json").is_file() else None
        vocabulary = Vocabulary.load(model, codec.levels if codec else ())
    vocabulary = vocabulary or Vocabulary(train_bpe([], MINIMUM_SIZE))
    names = [modality.name.lower() for modality in Modality]
    rows = []
    for file in files:
        counts = {name: 0 for name in names}
        for document in _documents(file, "user" if vocabulary.template else ""):
            for name, number in count(encode(document, vocabulary, config, codec)).items():
                counts[name] += number
        rows.append((str(file), counts))
    if len(rows) > 1:
        rows.append(("total", {name: sum(counts[name] for _, counts in rows) for name in names}))
    width = max(len(name) for name, _ in rows)
    print(f"{'':{width}}" + "".join(f"{name:>10}" for name in (*names, "all")))
    for name, counts in rows:
        print(f"{name:{width}}" + "".join(f"{number:>10,}" for number in (*counts.values(), sum(counts.values()))))


def _documents(file: Path, role: str) -> list[Document]:
    """A file as running content, a medium in a turn of `role`. Raises MediaError if it is neither a medium nor text."""
    if file.suffix.lower() == ".jsonl":
        return list(read_jsonl(file))
    kind = media_kind(file)
    if kind is not None:
        return [Document((Content(role, (PARTS[kind](file),)),))]
    try:
        return [Document((Content("", (Text(file.read_text(encoding="utf-8")),)),))]
    except UnicodeDecodeError as error:
        raise MediaError(f"{file} is no image, sound or video by its name, and no UTF-8 text") from error


def main(arguments: list[str]) -> None:
    """Entry of `pollux tokens`."""
    tyro.cli(tokens, prog="pollux tokens", args=arguments)
