"""urlContext: the pages whose addresses the user names are fetched, by the rules of fetch.py, and read before the answer is written."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pollux import content
from pollux.serve.fetch import Address, FetchError, FetchLimits, fetch, is_public
from pollux.serve.retrieval.chunks import cut
from pollux.serve.retrieval.index import Index
from pollux.serve.retrieval.reading import Reading, Unreadable, read
from pollux.serve.tools import sources
from pollux.serve.tools.tool import Context, Found, Room, ServerTool, Source

MAX_URLS = 20
MAX_BYTES = 10 << 20  # of a page
_PASSAGES = 8  # of a page that is too long to be read as a whole
_WORDS, _OVERLAP = 120, 0
_URL = re.compile(r"""https?://[^\s<>"'`{}|\\^，。、；：！？（）「」『』【】《》“”‘’…]+""", re.IGNORECASE)
_PREFIX = "URL_RETRIEVAL_STATUS_"


class UrlContext:
    """The tool as it is enabled. allowed: which addresses may be connected to."""

    def __init__(self, limits: FetchLimits, allowed: Callable[[Address], bool] = is_public):
        self.limits, self.allowed = limits, allowed

    def open(self, asked: Any, owner: str) -> ServerTool:
        return _Fetch(self.limits, self.allowed)


class _Fetch(ServerTool):
    def __init__(self, limits: FetchLimits, allowed: Callable[[Address], bool]):
        self._limits, self._allowed = limits, allowed
        self._fetched: list[dict[str, str]] = []

    def before(self, turns: Sequence[content.Content], room: Room) -> Context | None:
        addresses, end = urls(turns), time.monotonic() + self._limits.seconds
        found: list[Source] = []
        for url in addresses:
            status = "SUCCESS"
            try:
                found += _sources(url, self._get(url, end - time.monotonic()), sources.question(turns), room, len(addresses))
            except FetchError as error:
                status = "UNSAFE" if error.refused else "PAYWALL" if error.status == 402 else "ERROR"
            except Unreadable:
                status = "ERROR"
            self._fetched.append({"retrievedUrl": url, "urlRetrievalStatus": _PREFIX + status})
        return sources.context(found, (), room)

    def after(self, text: str, found: Found) -> Mapping[str, Any]:
        if not self._fetched:
            return {}
        fields: dict[str, Any] = {"url_context_metadata": {"urlMetadata": self._fetched}}
        return fields | (sources.web_grounding(text, found) if found.sources else {})

    def _get(self, url: str, seconds: float) -> Reading:
        """The text of a page, within the seconds that are left for all pages. Raises FetchError, Unreadable."""
        if seconds <= 0:
            raise FetchError("the pages before it took all the time there was")
        limits = dataclasses.replace(self._limits, seconds=seconds, max_bytes=min(self._limits.max_bytes, MAX_BYTES))
        fetched = fetch(url, limits, self._allowed)
        return read(fetched.data, f"{fetched.mime_type or 'text/html'};charset={fetched.charset}")


def urls(turns: Sequence[content.Content]) -> list[str]:
    """The addresses in what the user said, each once, in order."""
    texts = [part.text for turn in turns if turn.role == "user" for part in turn.parts if isinstance(part, content.Text)]
    found = (_trimmed(match) for text in texts for match in _URL.findall(text))
    return list(dict.fromkeys(found))[:MAX_URLS]


def _trimmed(url: str) -> str:
    """Without the marks of the sentence around it; a bracket belongs to the address if it was opened there."""
    while url[-1] in ".,;:!?*_" or any(url[-1] == closing and url.count(closing) > url.count(opening) for opening, closing in ("()", "[]")):
        url = url[:-1]
    return url


def _sources(url: str, reading: Reading, query: str, room: Room, number: int) -> list[Source]:
    """The whole page, if it takes no more than its share of the room, else the passages that fit the question best, in their order."""
    title = reading.title or url
    if room.count(reading.text[: 8 * room.tokens]) * number <= room.tokens and len(reading.text) <= 8 * room.tokens:
        return [Source(url, title, reading.text)]
    index = Index(":memory:", None)
    try:
        chunks = cut(reading, _WORDS, _OVERLAP)
        index.put(url, chunks, [None] * len(chunks), title, url)
        best = [found.chunk for found in index.search(query, None, _PASSAGES)] or chunks[:_PASSAGES]
    finally:
        index.close()
    return [Source(url, title, chunk.text) for chunk in sorted(best, key=lambda chunk: chunk.start)]
