"""Drawn pictures on the command line: files with free names, and a small preview in terminals that show colour."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL.Image

PREVIEW_COLUMNS = 48


def save_pictures(pictures: Iterable[PIL.Image.Image], folder: Path) -> list[Path]:
    """Write pictures as drawing-N.png with the next free N; never overwrites. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    number = 1
    for picture in pictures:
        while (folder / f"drawing-{number}.png").exists():
            number += 1
        paths.append(folder / f"drawing-{number}.png")
        picture.save(paths[-1])
    return paths


def preview(picture: PIL.Image.Image, columns: int = PREVIEW_COLUMNS) -> str:
    """The picture as text of at most `columns` characters a line, two pixels a character (upper half block, 24-bit colour)."""
    width = min(columns, picture.width)
    height = 2 * max(1, round(picture.height * width / picture.width / 2))
    pixels = np.asarray(picture.convert("RGB").resize((width, height)))
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        cells = (f"\x1b[38;2;{a};{b};{c}m\x1b[48;2;{d};{e};{f}m▀" for (a, b, c), (d, e, f) in zip(upper, lower, strict=True))
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)
