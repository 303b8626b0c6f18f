"""Pages of PDF files as pictures, drawn by PDFium (pdfium.py) one at a time when they are looked at.

Shape: H, W pixels of a page.
"""

from __future__ import annotations

import os

import numpy as np

from pollux.media import pdfium
from pollux.media.source import DEFAULT_LIMITS, Limits, MediaError, Page, called, check_pixels, naming, open_source

_COUNT_SECONDS = 60.0  # to open a PDF


def pdf_pages(source: bytes | os.PathLike, limits: Limits = DEFAULT_LIMITS) -> list[Page]:
    """The pages of a PDF, not drawn yet. Raises MediaError for a file that is no PDF, is truncated or has too many pages."""
    name = called("PDF", source)
    answer, _ = _asked(name, "count", source, limits, _COUNT_SECONDS, limits.max_pages)
    return [Page(source, number) for number in range(1, answer["pages"] + 1)]


def draw_page(page: Page, limits: Limits) -> np.ndarray:
    """uint8 RGB [H, W, 3] at 150 dots an inch on white, the longer side kept between 768 and 3072 pixels. Raises MediaError."""
    name = called("image", page)
    answer, pixels = _asked(name, "draw", page.file, limits, limits.page_seconds, page.number, limits.max_pixels)
    width, height = answer["width"], answer["height"]
    check_pixels(name, width, height, limits)
    rows_BGR = np.frombuffer(pixels, np.uint8).reshape(height, answer["stride"])[:, : 3 * width].reshape(height, width, 3)
    return rows_BGR[:, :, ::-1].copy()


def _asked(name: str, question: str, file: bytes | os.PathLike, limits: Limits, seconds: float, *most: int) -> tuple[dict, bytes]:
    with naming("PDF", file):
        open_source(name, file, limits).close()
        try:
            return pdfium.ask(question, file, seconds, *most)
        except pdfium.PdfError as error:
            raise MediaError(f"{name} {error}") from error
