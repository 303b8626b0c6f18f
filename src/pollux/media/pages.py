"""Pages of PDF files as pictures, drawn by PDFium one at a time when they are looked at.

Shape: H, W pixels of a page.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pollux.media.source import DEFAULT_LIMITS, Limits, MediaError, Page, called, check_pixels, naming, open_source

if TYPE_CHECKING:
    import pypdfium2

_DOTS_PER_POINT = 150 / 72  # small print stays legible
_LONG_SIDE = 768, 3072  # pixels that the longer side has at least and at most, whatever size a page claims
_END = b"%%EOF", 1024  # the mark, and in how many last bytes it must stand (ISO 32000-1, annex H.3.4.4)

_one_at_a_time = threading.Lock()  # PDFium may be called from one thread at a time


def pdf_pages(source: bytes | os.PathLike, limits: Limits = DEFAULT_LIMITS) -> list[Page]:
    """The pages of a PDF, not drawn yet. Raises MediaError for a file that is no PDF, is truncated or has too many pages."""
    with naming("PDF", source) as name, _opened(name, source, limits) as document:
        if not len(document):
            raise MediaError(f"{name} is broken: it has no pages")
        if len(document) > limits.max_pages:
            raise MediaError(f"{name} has {len(document)} pages, more than the limit of {limits.max_pages}")
        return [Page(source, number) for number in range(1, len(document) + 1)]


def draw_page(page: Page, limits: Limits) -> np.ndarray:
    """uint8 RGB [H, W, 3] at 150 dots an inch on white, the longer side kept between 768 and 3072 pixels. Raises MediaError."""
    with naming("PDF", page.file) as file, _opened(file, page.file, limits) as document:
        name = called("image", page)
        opened = document[page.number - 1]
        long, short = sorted(opened.get_size(), reverse=True)  # in points
        if not 0 < short <= long < float("inf"):
            raise MediaError(f"{name} has no size")
        scale = min(max(_DOTS_PER_POINT, _LONG_SIDE[0] / long), _LONG_SIDE[1] / long)
        width, height = (max(1, round(side * scale)) for side in opened.get_size())
        check_pixels(name, width, height, limits)
        return _drawn(name, opened, width, height, limits.page_seconds)


@contextlib.contextmanager
def _opened(name: str, source: bytes | os.PathLike, limits: Limits) -> Iterator[pypdfium2.PdfDocument]:
    try:
        import pypdfium2
    except ImportError as error:
        raise MediaError(f"{name} needs pypdfium2 to be read: pip install 'pollux[serve]'") from error
    with open_source(name, source, limits) as file:
        file.seek(-min(_END[1], file.seek(0, os.SEEK_END)), os.SEEK_END)
        whole = _END[0] in file.read()
    with _one_at_a_time:
        try:
            document = pypdfium2.PdfDocument(source if isinstance(source, bytes) else os.fspath(source))
        except pypdfium2.PdfiumError as error:
            if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
                raise MediaError(f"{name} is locked with a password; send it without one") from error
            raise MediaError(f"{name} is broken or no PDF") from error
        try:
            if not whole:  # PDFium would go on with the pages that it finds
                raise MediaError(f"{name} is truncated: its end mark {_END[0].decode()} is missing")
            yield document
        finally:
            document.close()


def _drawn(name: str, page: Any, width: int, height: int, seconds: float) -> np.ndarray:
    """Draw in steps, so that a page made to take forever can be given up. Raises MediaError."""
    from pypdfium2 import PdfBitmap, raw

    latest = time.monotonic() + seconds
    pause = raw.IFSDK_PAUSE(version=1)
    pause.NeedToPauseNow = type(pause.NeedToPauseNow)(lambda _: time.monotonic() >= latest)
    bitmap = PdfBitmap.new_native(width, height, raw.FPDFBitmap_BGR)
    try:
        bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
        state = raw.FPDF_RenderPageBitmap_Start(bitmap, page, 0, 0, width, height, 0, raw.FPDF_ANNOT, pause)
        raw.FPDF_RenderPage_Close(page)
        if state == raw.FPDF_RENDER_TOBECONTINUED:
            raise MediaError(f"{name} takes longer than the limit of {seconds:g} seconds to draw")
        if state != raw.FPDF_RENDER_DONE:
            raise MediaError(f"{name} is broken")
        return bitmap.to_numpy()[:, :, ::-1].copy()
    finally:
        bitmap.close()
