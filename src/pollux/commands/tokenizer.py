"""`pollux tokenizer train`: byte-level BPE on the user's own text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tyro

from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary


def train(files: tyro.conf.Positional[tuple[Path, ...]], /, out: Path, vocab_size: int = 8192) -> None:
    """Train a byte-level BPE tokeniser on text files and write OUT/tokenizer.json.

    Example: pollux tokenizer train notes/*.md stories.txt --out my-tokenizer --vocab-size 16384

    Args:
        files: UTF-8 text files, or folders whose .txt and .md files are read.
        out: Folder that receives tokenizer.json.
        vocab_size: Number of ids, special tokens and the 256 bytes included.
    """
    paths = _text_files(files)
    vocabulary = Vocabulary(train_bpe(_lines(paths), vocab_size))
    out.mkdir(parents=True, exist_ok=True)
    vocabulary.save(out)
    print(f"{out / 'tokenizer.json'}: {vocabulary.size} ids from {len(paths)} files")


def _text_files(files: tuple[Path, ...]) -> list[Path]:
    paths: list[Path] = []
    for file in files:
        paths += sorted(p for p in file.rglob("*") if p.suffix in (".txt", ".md")) if file.is_dir() else [file]
    if not paths:
        raise ValueError("no text files were given; name files or folders that hold .txt or .md files")
    return paths


def _lines(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        try:
            with path.open(encoding="utf-8") as lines:
                yield from lines
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def main(arguments: list[str]) -> None:
    """Entry of `pollux tokenizer`."""
    tyro.extras.subcommand_cli_from_dict({"train": train}, prog="pollux tokenizer", args=arguments)
