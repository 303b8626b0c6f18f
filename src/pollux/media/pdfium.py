"""PDFium in a process of its own, with limits of time and memory: a PDF is a program in a way, and a bad one must not hold up or fell what
reads it.

As a program: pdfium.py QUESTION SECONDS LIMIT ..., with the PDF at its standard input; writes a line of JSON, with "error" if there is no
answer, and behind it the pixels of a page.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

MAX_MEMORY = 2 << 30  # bytes
_DOTS_PER_POINT = 150 / 72  # small print stays legible
_LONG_SIDE = 768, 3072  # pixels that the longer side has at least and at most, whatever size a page claims
_END = b"%%EOF", 1024  # the mark, and in how many last bytes it must stand (ISO 32000-1, annex H.3.4.4)

_at_once = threading.BoundedSemaphore(os.cpu_count() or 1)


class PdfError(ValueError):
    """The message goes on behind what the PDF is called: "is broken or no PDF"."""


def ask(question: str, source: bytes | os.PathLike, seconds: float, *limits: int) -> tuple[dict[str, Any], bytes]:
    """The answer to "count", "text" or "draw", as the function of this name below makes it of a document and the limits. Blocks.

    seconds: of a processor. Raises PdfError, OSError.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_at_once)
        given: dict[str, Any] = {"input": source} if isinstance(source, bytes) else {"stdin": stack.enter_context(open(source, "rb"))}
        command = [sys.executable, "-I", __file__, question, str(seconds), *map(str, limits)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, **given)
    if done.returncode == -signal.SIGPROF:
        raise PdfError(f"takes longer than the limit of {seconds:g} seconds to {'draw' if question == 'draw' else 'read'}")
    line, _, pixels = done.stdout.partition(b"\n")
    if done.returncode:
        raise PdfError("is broken, or takes too much memory")
    answer = json.loads(line)
    if "error" in answer:
        raise PdfError(answer["error"])
    return answer, pixels


def count(document: Any, max_pages: int) -> tuple[dict[str, Any], bytes]:
    """{"pages": how many}."""
    if not len(document):
        raise PdfError("is broken: it has no pages")
    if len(document) > max_pages:
        raise PdfError(f"has {len(document)} pages, more than the limit of {max_pages}")
    return {"pages": len(document)}, b""


def text(document: Any, max_pages: int, max_characters: int) -> tuple[dict[str, Any], bytes]:
    """{"title": "" if it has none, "pages": the text of each}."""
    count(document, max_pages)
    pages, left = [], max_characters
    for page in document:
        pages.append(page.get_textpage().get_text_bounded().replace("\r\n", "\n"))
        left -= len(pages[-1])
        if left < 0:
            raise PdfError(f"has more than the {max_characters} characters of text that can be read")
    return {"title": document.get_metadata_value("Title").strip(), "pages": pages}, b""


def draw(document: Any, number: int, max_pixels: int) -> tuple[dict[str, Any], bytes]:
    """{"width", "height", "stride"} and rows of BGR, `stride` bytes each, if they have no more pixels. number: of the page, from 1."""
    from pypdfium2 import PdfBitmap, raw

    page = document[number - 1]
    long, short = sorted(page.get_size(), reverse=True)  # in points
    if not 0 < short <= long < float("inf"):
        raise PdfError("has no size")
    scale = min(max(_DOTS_PER_POINT, _LONG_SIDE[0] / long), _LONG_SIDE[1] / long)
    width, height = (max(1, round(side * scale)) for side in page.get_size())
    if width * height > max_pixels:
        return {"width": width, "height": height, "stride": 0}, b""
    bitmap = PdfBitmap.new_native(width, height, raw.FPDFBitmap_BGR)
    bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
    raw.FPDF_RenderPageBitmap(bitmap, page, 0, 0, width, height, 0, raw.FPDF_ANNOT)
    return {"width": width, "height": height, "stride": bitmap.stride}, bytes(bitmap.buffer)


def _answer(question: str, seconds: float, limits: list[int], data: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        import pypdfium2
    except ImportError:
        return {"error": "needs pypdfium2 to be read: pip install 'pollux[serve]'"}, b""
    signal.setitimer(signal.ITIMER_PROF, max(seconds, 1e-3))  # which kills, inside PDFium too
    try:
        document = pypdfium2.PdfDocument(data)
        if _END[0] not in data[-_END[1] :]:  # PDFium would go on with the pages that it finds
            raise PdfError(f"is truncated: its end mark {_END[0].decode()} is missing")
        questions: dict[str, Callable[..., tuple[dict[str, Any], bytes]]] = {"count": count, "text": text, "draw": draw}
        return questions[question](document, *limits)
    except PdfError as error:
        return {"error": str(error)}, b""
    except pypdfium2.PdfiumError as error:
        locked = error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD
        return {"error": "is locked with a password; send it without one" if locked else "is broken or no PDF"}, b""


def _main() -> None:
    import resource

    with contextlib.suppress(ValueError):  # macOS keeps no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    question, seconds, *limits = sys.argv[1:]
    answer, pixels = _answer(question, float(seconds), [int(limit) for limit in limits], sys.stdin.buffer.read())
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + pixels)
    sys.stdout.buffer.flush()
    os._exit(0)  # nothing is left to be tidied up, and a broken document can make that fail


if __name__ == "__main__":
    _main()
