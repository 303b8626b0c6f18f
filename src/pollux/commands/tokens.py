"""`pollux tokens`: what a file costs in tokens, per modality."""

from __future__ import annotations

from pathlib import Path

import tyro


def tokens(files: tyro.conf.Positional[tuple[Path, ...]], /, model: Path | None = None) -> None:
    """Count the tokens of files per modality.

    Example: pollux tokens photo.png talk.wav notes.md --model runs/quickstart/model

    Args:
        files: Text, image, sound or video files.
        model: Folder of the model whose tokeniser and resolutions count; without it every UTF-8 byte counts as one text token.
    """
    if not files:
        raise ValueError("no files were given; example: pollux tokens photo.png")


def main(arguments: list[str]) -> None:
    """Entry of `pollux tokens`."""
    tyro.cli(tokens, prog="pollux tokens", args=arguments)
