"""The text of a PDF, page by page, read in a process of its own with limits of time and memory: such files are programs in a way, and a
bad one must not hold up a server.

As a program: reads the PDF at its standard input and writes JSON, {"title": ..., "pages": [...]} or {"error": ...}.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SECONDS = 120
MAX_MEMORY = 2 << 30  # bytes
MAX_PAGES = 5_000


class BadPdf(ValueError):
    """The message says why there is no text."""


def read(source: bytes | Path) -> tuple[str, list[str]]:
    """Title ("" if it has none) and the text of every page. Blocks. Raises BadPdf."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        done = subprocess.run([sys.executable, "-I", __file__], input=data, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise BadPdf(f"the PDF takes longer than {SECONDS} seconds to read") from error
    try:
        said = json.loads(done.stdout)
    except ValueError as error:
        raise BadPdf("the PDF cannot be read: it is broken, or takes too much time or memory") from error
    if "error" in said:
        raise BadPdf(said["error"])
    return said["title"], said["pages"]


def _read(data: bytes) -> dict:
    try:
        import pypdfium2
    except ImportError:
        return {"error": "PDF cannot be read here: whoever runs the server has to install pypdfium2"}
    try:
        document = pypdfium2.PdfDocument(data)
        if len(document) > MAX_PAGES:
            return {"error": f"the PDF has {len(document)} pages, more than the {MAX_PAGES} that can be read"}
        pages = [page.get_textpage().get_text_bounded().replace("\r\n", "\n") for page in document]
        return {"title": document.get_metadata_value("Title").strip(), "pages": pages}
    except pypdfium2.PdfiumError as error:
        if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            return {"error": "the PDF is locked with a password; send it without one"}
        return {"error": f"the PDF is broken, or none: {error}"}


def _main() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    said = json.dumps(_read(sys.stdin.buffer.read())).encode()
    sys.stdout.buffer.write(said)


if __name__ == "__main__":
    _main()
