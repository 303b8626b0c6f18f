"""The text of a document: what a person would read in it, or one sentence that says why there is none.

Offsets of all that is built on a Reading count characters of `Reading.text`. For text, Markdown and CSV that is the file itself without
its byte order mark; of a web page it is what is visible, of JSON the same values written out, of a PDF what its pages say.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pollux.media import pdfium
from pollux.serve.retrieval import markup

MAX_BYTES = 100 << 20  # of a document
MAX_CHARACTERS = 10_000_000  # of its text
_PDF_SECONDS, _MAX_PAGES = 120.0, 5_000
READABLE = "plain text, Markdown, HTML, JSON, CSV and PDF"
Kind = Literal["text", "markdown", "table"]

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")) + (
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Those of the web; others that Python knows, such as punycode, are no encodings of texts or take forever.
_CHARSETS = r"utf-?8|us-ascii|iso-8859-\d+|iso-2022-jp|windows-\d+|koi8-[ru]|gbk|gb2312|gb18030|big5|euc-jp|euc-kr|shift_jis|macintosh"
_CHARSET = rf"""charset\s*=\s*["']?({_CHARSETS})\b"""
_SAID, _WRITTEN = (re.compile(before + _CHARSET, re.IGNORECASE) for before in (";\\s*", "<meta[^>]{0,200}?"))
_TEXTS = ("xml", "yaml", "x-yaml", "javascript", "typescript", "x-python", "x-sh", "sql", "toml", "x-tex", "rtf")
_LINES_OF_JSON = ("jsonl", "x-ndjson", "ndjson", "x-jsonlines", "jsonlines")
_SUFFIXES = {
    **{".txt": "text/plain", ".text": "text/plain", ".rst": "text/plain", ".log": "text/plain", ".py": "text/x-python"},
    **{".md": "text/markdown", ".markdown": "text/markdown", ".html": "text/html", ".htm": "text/html", ".xhtml": "text/html"},
    **{".json": "application/json", ".jsonl": "application/jsonl", ".csv": "text/csv", ".tsv": "text/csv", ".pdf": "application/pdf"},
}


class Unreadable(ValueError):
    """A document without text that could be found; the message is for whoever sent it."""


@dataclass(frozen=True)
class Reading:
    """text: as above. pages: where in it each page begins, empty if there are none."""

    text: str
    kind: Kind = "text"
    title: str = ""
    pages: tuple[int, ...] = ()


def read(source: bytes | Path, mime_type: str) -> Reading:
    """mime_type: its charset counts, if it is one of the web. Blocks. Raises Unreadable."""
    kind, _, name = mime_type.partition(";")[0].strip().lower().partition("/")
    size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
    if size > MAX_BYTES:
        raise Unreadable(f"the document has {size} bytes, more than the {MAX_BYTES} that can be read")
    if (kind, name) == ("application", "pdf"):
        return _checked(_pdf(source))
    is_text = kind == "text" or name in (*_TEXTS, "json", "xhtml+xml", *_LINES_OF_JSON) or name.endswith(("+json", "+xml"))
    if not is_text:
        raise Unreadable(f"documents of the type {mime_type or 'unknown'!r:.80} cannot be read, but {READABLE}")
    data = source if isinstance(source, bytes) else source.read_bytes()
    is_page = name in ("html", "xhtml+xml")
    said = _SAID.search(mime_type) or (_WRITTEN.search(data[:2048].decode("latin-1")) if is_page else None)
    text = _decoded(data, said[1] if said else "utf-8")
    if is_page:
        page = markup.visible(text)
        return _checked(Reading(page.text, title=page.title))
    if name in _LINES_OF_JSON:
        return _checked(Reading(_written((f"line {i}", line) for i, line in enumerate(text.splitlines(), 1) if line.strip())))
    if name == "json" or name.endswith("+json"):
        return _checked(Reading(_written([("it", text)])))
    if name in ("markdown", "x-markdown"):
        heading = re.search(r"^#[ \t]+(\S.*)$", text, re.MULTILINE)
        return _checked(Reading(text, "markdown", heading[1].strip() if heading else ""))
    if name in ("csv", "tab-separated-values"):
        return _checked(Reading(text, "table"))
    return _checked(Reading(text))


def type_of(path: Path) -> str:
    """The mime type of a file by the end of its name, "" for one that cannot be read."""
    return _SUFFIXES.get(path.suffix.lower(), "")


def _checked(reading: Reading) -> Reading:
    if len(reading.text) > MAX_CHARACTERS:
        raise Unreadable(f"the document has {len(reading.text)} characters of text, more than the {MAX_CHARACTERS} that can be read")
    if not reading.text.strip():
        raise Unreadable("the document holds no text")
    return reading


def _decoded(data: bytes, charset: str) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "")
    try:
        text = data.decode(encoding or charset)
    except (UnicodeDecodeError, LookupError) as error:
        raise Unreadable(f"the document is no text in {charset.upper()}: {error}") from error
    if len(text) > MAX_CHARACTERS:
        raise Unreadable(f"the document has {len(text)} characters, more than the {MAX_CHARACTERS} that can be read")
    if "\0" in text:
        raise Unreadable(f"the document is no text: it holds a zero byte at character {text.index(chr(0))}")
    return text


def _written(values: Iterable[tuple[str, str]]) -> str:
    """Values in JSON, each behind what to call it, with a line for every value in them, and their characters as they are."""
    encoder, pieces, size = json.JSONEncoder(ensure_ascii=False, indent=1), list[str](), 0
    for what, text in values:
        try:
            for piece in encoder.iterencode(json.loads(text)):
                piece.encode()
                pieces.append(piece)
                size += len(piece)
                if size > MAX_CHARACTERS:  # what is nested deeply is indented far
                    break
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"the document is not JSON: {what} cannot be read, {str(error) or 'it is nested too deeply'}") from error
        if size > MAX_CHARACTERS:
            raise Unreadable(f"the document has more than the {MAX_CHARACTERS} characters of text that can be read")
        pieces.append("\n")
    return "".join(pieces).removesuffix("\n")


def _pdf(source: bytes | Path) -> Reading:
    try:
        found, _ = pdfium.ask("text", source, _PDF_SECONDS, _MAX_PAGES, MAX_CHARACTERS)
    except pdfium.PdfError as error:
        raise Unreadable(f"the PDF {error}") from error
    starts, text = [], ""
    for page in found["pages"]:
        starts.append(len(text))
        text += page.replace("\0", "") + "\n\n"
    if not text.strip():
        raise Unreadable("the PDF holds no text: its pages may be pictures")
    return Reading(text, title=found["title"], pages=tuple(starts))
