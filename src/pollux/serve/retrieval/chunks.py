"""Passages of a document: some words each, cut where a reader would stop, overlapping a little.

Words are what stands between white space; of scripts without spaces every character is one, and so are 64 characters in a row. What is
between two chunks is white space only, so that no word is lost.
"""

from __future__ import annotations

import array
import bisect
import re
from dataclasses import dataclass

from pollux.serve.retrieval.reading import Reading, Unreadable

USUAL_WORDS, MOST_WORDS = 200, 512
USUAL_OVERLAP = 20
MAX_CHUNKS = 100_000

UNSPACED = "\u2e80-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Han, Kana, Thai ...
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]{{1,64}}")
_SENTENCE_END = re.compile(r"""[.!?…。！？]["'”’)\]]*$""")
_HEADING = re.compile(r"(#{1,6})[ \t]+([^\s#].*)")
_FENCE = re.compile(r"^ {0,3}(```|~~~)")


@dataclass(frozen=True)
class Chunk:
    """text == reading.text[start:end]; the bytes count in its UTF-8. heading: what the passage stands under. page: counted from 1."""

    text: str
    start: int
    end: int
    start_byte: int
    end_byte: int
    heading: str = ""
    page: int | None = None


def cut(reading: Reading, most_words: int = USUAL_WORDS, overlap: int = USUAL_OVERLAP) -> list[Chunk]:
    """Raises Unreadable for more than MAX_CHUNKS chunks, ValueError for sizes that do not go together."""
    if not 1 <= most_words <= MOST_WORDS:
        raise ValueError(f"a chunk must have 1 to {MOST_WORDS} words, not {most_words}")
    if not 0 <= overlap <= most_words // 2:
        raise ValueError(f"chunks of {most_words} words may overlap by 0 to {most_words // 2} words, not {overlap}")
    text = reading.text
    starts, stops = array.array("l"), array.array("l")  # of words, of which there may be millions
    for match in _WORD.finditer(text):
        starts.append(match.start())
        stops.append(match.end())
    headings, openings = _headings(reading)
    openings = sorted({*openings, *reading.pages})
    heading_starts = [start for start, _ in headings]
    chunks: list[Chunk] = []
    first, last_byte, last_start = 0, 0, 0
    while first < len(starts):
        end, opens = _end(text, starts, stops, first, min(first + most_words, len(starts)), openings)
        start, stop = starts[first], stops[end - 1]
        last_byte += len(text[last_start:start].encode())
        last_start = start
        passage = text[start:stop]
        under = bisect.bisect_right(heading_starts, start) - 1
        page = bisect.bisect_right(reading.pages, start) if reading.pages else None
        heading = headings[under][1] if under >= 0 else ""
        chunks.append(Chunk(passage, start, stop, last_byte, last_byte + len(passage.encode()), heading, page))
        if len(chunks) > MAX_CHUNKS:
            raise Unreadable(f"the document has more than {MAX_CHUNKS} chunks; make them larger, or cut the document in parts")
        first = end if opens or end == len(starts) else max(end - overlap, first + 1)
    return chunks


def searchable(title: str, chunk: Chunk) -> str:
    """What a chunk is found by: its text, and what it stands under."""
    return "\n".join(dict.fromkeys(line for line in (title, chunk.heading, chunk.text) if line))


def _end(text: str, starts: array.array, stops: array.array, first: int, most: int, openings: list[int]) -> tuple[int, bool]:
    """Behind which word a chunk ends, and whether something else opens there, such as a page: before that, else at the end of a paragraph,
    line or sentence in its last half, else where it is full."""
    behind = bisect.bisect_right(openings, starts[first])
    if behind < len(openings):
        opening = bisect.bisect_left(starts, openings[behind])
        if opening <= most:
            return opening, True
    if most == len(starts):
        return most, False
    best, value = most, 0
    for end in range(first + (most - first) // 2 + 1, most + 1):
        between = text[stops[end - 1] : starts[end]]
        worth = 3 if between.count("\n") > 1 else 2 if "\n" in between else 0
        if not worth and between and _SENTENCE_END.search(text[starts[end - 1] : stops[end - 1]]):
            worth = 1
        if worth and worth >= value:
            best, value = end, worth
    return best, False


def _headings(reading: Reading) -> tuple[list[tuple[int, str]], list[int]]:
    """Where in the text what heading begins to count: those of Markdown with the ones above them, and of a table its first line; and where
    a passage should not go on, which is before the first of some headings."""
    if reading.kind == "table":
        line = reading.text.strip().partition("\n")[0].strip()
        return [(reading.text.index(line) + len(line), line[:300])], []
    if reading.kind != "markdown":
        return [], []
    found: list[tuple[int, str]] = []
    openings: list[int] = []
    path: list[tuple[int, str]] = []
    position, fenced, after_heading = 0, False, True
    for line in reading.text.splitlines(keepends=True):
        match = None if fenced else _HEADING.match(line.rstrip())
        fenced ^= bool(_FENCE.match(line))
        if match:
            level = len(match[1])
            path = [(above, words) for above, words in path if above < level] + [(level, " ".join(match[2].rstrip(" \t#").split()))]
            found.append((position, " > ".join(words for _, words in path)[:300]))
            if not after_heading:
                openings.append(position)
        if line.strip():
            after_heading = bool(match)
        position += len(line)
    return found, openings
