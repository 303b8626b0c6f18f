"""googleSearch: the passages that a search finds for the user's question are read before the answer is written, and the answer's sentences
that rest on them say so. What is searched is the operator's choice: anything with the methods of a Backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pollux import content
from pollux.serve.errors import invalid
from pollux.serve.retrieval.folder import FolderSearch
from pollux.serve.tools import sources
from pollux.serve.tools.tool import Context, Found, Room, ServerTool, Source
from pollux.serve.wire.content import GoogleSearch as Asked
from pollux.serve.wire.content import Interval

PASSAGES = 8  # that are read at most


class Backend(Protocol):
    """What is searched, from several threads."""

    def find(self, query: str, most: int, since: float | None, until: float | None) -> Sequence[Source]:
        """The best passages for a query, the best first, of pages changed between two times (seconds since 1970, None: any). Blocks."""


class Folder:
    """The backend that searches the operator's folder."""

    def __init__(self, search: FolderSearch):
        self.search = search

    def find(self, query: str, most: int, since: float | None, until: float | None) -> list[Source]:
        found = self.search.search(query, most, since, until)
        return [Source(self.search.address(one), one.title, one.chunk.text) for one in found]


class GoogleSearch:
    """The tool as it is enabled."""

    def __init__(self, backend: Backend):
        self.backend = backend

    def open(self, asked: Asked, owner: str) -> ServerTool:
        period = asked.time_range_filter or Interval()
        since = period.start_time.timestamp() if period.start_time else None
        until = period.end_time.timestamp() if period.end_time else None
        if since is not None and until is not None and since > until:
            raise invalid("googleSearch.timeRangeFilter ends before it starts")
        return _Search(self.backend, since, until)


class _Search(ServerTool):
    def __init__(self, backend: Backend, since: float | None, until: float | None):
        self._backend, self._since, self._until = backend, since, until

    def before(self, turns: Sequence[content.Content], room: Room) -> Context | None:
        query = sources.question(turns)
        if not query:
            return None
        return sources.context(self._backend.find(query, PASSAGES, self._since, self._until), (query,), room)

    def after(self, text: str, found: Found) -> Mapping[str, Any]:
        if not found.queries:
            return {}
        return sources.web_grounding(text, found)
