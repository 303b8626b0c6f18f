"""Passages of a user's documents for a query, over one or several stores."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pollux.serve.errors import invalid
from pollux.serve.file_search import documents, imports, stores
from pollux.serve.listing import store_of
from pollux.serve.records import Record
from pollux.serve.retrieval import filters
from pollux.serve.retrieval.index import Found
from pollux.serve.server import Server
from pollux.serve.wire.file_search import CustomMetadata
from pollux.serve.wire.message import parse

MAX_STORES = 10  # of a search


@dataclass(frozen=True)
class Passage:
    """A chunk that was found, with the store and the document that it is of."""

    found: Found
    store: str  # fileSearchStores/...
    document: Record


def open_stores(server: Server, names: Sequence[str], owner: str) -> list[Record]:
    """The stores of these names; blocks. Raises ApiError 400 for names that are none, 403 for stores that are not there."""
    if not 1 <= len(names) <= MAX_STORES:
        raise invalid(f"fileSearchStoreNames must be 1 to {MAX_STORES} names, not {len(names)}")
    return [stores.find(store_of(server), name.removeprefix("fileSearchStores/"), owner) for name in dict.fromkeys(names)]


def search(server: Server, parents: Sequence[Record], query: str, most: int, passes: filters.Filter | None = None) -> list[Passage]:
    """The best chunks of all documents that are ready and pass the filter, the best first. Blocks. Raises ApiError 403 for a store that is
    deleted meanwhile.

    Scores of different stores are comparable: they are made of ranks.
    """
    store = store_of(server)
    found: list[Passage] = []
    for parent in parents:
        try:
            found += _in_store(server, parent, query, most, passes)
        except sqlite3.Error:
            if store.records.get("file_search_store", parent.name) is not None:
                raise
        if store.records.get("file_search_store", parent.name) is None:
            store.indexes.delete(parent.name)  # which the search may have made anew
            raise stores.no_store(parent.name)
    return sorted(found, key=lambda passage: -passage.found.score)[:most]


def _in_store(server: Server, parent: Record, query: str, most: int, passes: filters.Filter | None) -> list[Passage]:
    ready = {
        record.name: record
        for record in documents.all_of(store_of(server), parent)
        if record.data["state"] == "STATE_ACTIVE" and (passes is None or passes(values_of(record)))
    }
    if not ready:
        return []
    index, embedder = imports.open_index(server, parent)
    vector = None if embedder is None else embedder.embed(query)
    return [Passage(one, f"fileSearchStores/{parent.name}", ready[one.document]) for one in index.search(query, vector, most, ready)]


def values_of(record: Record) -> dict[str, Any]:
    """The custom metadata of a document, as filters read them."""
    values: dict[str, filters.Value] = {}
    for one in (parse(CustomMetadata, given)[0] for given in record.data["customMetadata"]):
        if one.string_value is not None:
            values[one.key] = one.string_value
        elif one.string_list_value is not None:
            values[one.key] = one.string_list_value.values
        elif one.numeric_value is not None:
            values[one.key] = float(one.numeric_value)
    return values
