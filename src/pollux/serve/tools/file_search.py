"""fileSearch: the passages of the user's own file search stores that fit the question are read before the answer is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pollux import content
from pollux.serve.errors import invalid
from pollux.serve.file_search.search import Passage, open_stores, search
from pollux.serve.records import Record
from pollux.serve.retrieval import filters
from pollux.serve.server import Server
from pollux.serve.tools import grounding, sources
from pollux.serve.tools.tool import Context, Found, Room, ServerTool, Source
from pollux.serve.wire.content import FileSearch as Asked

USUAL_PASSAGES, MOST_PASSAGES = 8, 100


class FileSearch:
    """The tool as it is enabled."""

    def __init__(self, server: Server):
        self.server = server

    def open(self, asked: Asked, owner: str) -> ServerTool:
        most = USUAL_PASSAGES if asked.top_k is None else asked.top_k
        if not 1 <= most <= MOST_PASSAGES:
            raise invalid(f"fileSearch.topK is {most} but must be between 1 and {MOST_PASSAGES}")
        try:
            passes = filters.parse(asked.metadata_filter)
        except ValueError as error:
            raise invalid(f"fileSearch.metadataFilter: {error}") from error
        return _Search(self.server, open_stores(self.server, asked.file_search_store_names, owner), most, passes)


class _Search(ServerTool):
    def __init__(self, server: Server, stores: list[Record], most: int, passes: filters.Filter):
        self._server, self._stores, self._most, self._passes = server, stores, most, passes

    def before(self, turns: Sequence[content.Content], room: Room) -> Context | None:
        query = sources.question(turns)
        if not query:
            return None
        passages = search(self._server, self._stores, query, self._most, self._passes)
        found = [Source(one.found.uri, one.found.title, one.found.chunk.text, one) for one in passages]
        return sources.context(found, (), room)

    def after(self, text: str, found: Found) -> Mapping[str, Any]:
        chunks = [{"retrievedContext": _described(source)} for source in found.sources]
        return {"grounding_metadata": grounding.metadata(text, [source.text for source in found.sources], chunks)}


def _described(source: Source) -> dict[str, Any]:
    passage: Passage = source.details
    page, metadata = passage.found.chunk.page, passage.document.data["customMetadata"]
    return {
        "uri": source.uri,
        "title": source.title,
        "text": source.text,
        "fileSearchStore": passage.store,
        **({"customMetadata": metadata} if metadata else {}),
        **({"pageNumber": page} if page is not None else {}),
    }
