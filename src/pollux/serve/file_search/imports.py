"""Documents are read, cut, embedded and put into the index of their store, in the background; what a stop of the server interrupts is
done again by the next one."""

from __future__ import annotations

import logging
import sqlite3

from pollux.serve.errors import ApiError
from pollux.serve.file_search import documents
from pollux.serve.listing import store_of
from pollux.serve.records import Record
from pollux.serve.retrieval.chunks import cut
from pollux.serve.retrieval.embedder import Embedder, embed_chunks
from pollux.serve.retrieval.index import Index
from pollux.serve.retrieval.reading import Unreadable, read
from pollux.serve.server import Server
from pollux.serve.store import Store

log = logging.getLogger("pollux.serve")


def begin(server: Server, record: Record) -> None:
    """Import a document in the background: its state becomes ACTIVE or FAILED."""
    store = store_of(server)
    store.background(lambda: _take_in(server, store, record))


def resume(server: Server) -> None:
    """Go on with the imports that the last end of the server interrupted, read again what an index has lost, and remove indexes of stores
    that are gone. Blocks."""
    store = store_of(server)
    found = store.records.all("file_search_store")
    store.indexes.keep_only([record.name for record in found])
    for parent in found:
        records = list(documents.all_of(store, parent))
        indexed = open_index(server, parent)[0].documents() if records else {}
        for record in records:
            lost = record.data["state"] == "STATE_ACTIVE" and indexed.get(record.name) != str(record.number)
            if lost:
                record = store.records.update(record, {"state": "STATE_PENDING"}) or record
            if record.data["state"] == "STATE_PENDING":
                begin(server, record)
        for name in set(indexed) - {record.name for record in records}:
            open_index(server, parent)[0].remove(name)


def open_index(server: Server, parent: Record) -> tuple[Index, Embedder | None]:
    """The index of a store, and what embeds for it: the model that the store was made for or, if that is not served now, the first."""
    try:
        served = server.find(parent.data["embeddingModel"])
    except ApiError:
        served = next(iter(server.models.values()))
    return store_of(server).indexes.open(parent.name, served.embedder), served.embedder


def delete_document(store: Store, record: Record) -> None:
    """Take away a document with its chunks. Blocks."""
    store.delete(record)
    store.indexes.forget(record.name.partition("/")[0], record.name)


def forget_store(store: Store, record: Record) -> None:
    """Take away the index of a store whose record is gone. Blocks."""
    store.delete(record)  # its media
    store.indexes.delete(record.name)


def _take_in(server: Server, store: Store, record: Record) -> None:
    found = store.records.get("document", record.name)
    parent = store.records.get("file_search_store", record.name.partition("/")[0])
    if found is None or found.number != record.number or found.data["state"] != "STATE_PENDING" or parent is None:
        return
    try:
        changes = {"state": "STATE_ACTIVE", "error": ""} if _indexed(server, store, parent, record) else {}
    except Unreadable as error:
        changes = {"state": "STATE_FAILED", "error": str(error)}
    except (ApiError, OSError, sqlite3.Error) as error:
        if store.closing.is_set() or store.records.get("file_search_store", parent.name) is None:
            return  # the index was closed or deleted under the import
        log.error("the document %s could not be imported: %s", record.name, error)
        changes = {"state": "STATE_FAILED", "error": f"the server could not read or index the document: {error}"}
    except Exception:
        log.exception("an import failed")
        changes = {"state": "STATE_FAILED", "error": "an internal error occurred; the server's log says which"}
    if not changes:
        return
    with store.records.transaction():
        updated = store.records.update(record, changes)
        if updated is not None:
            store.records.update(parent, {})
    if updated is None:  # deleted meanwhile
        if store.records.get("file_search_store", parent.name) is None:
            store.indexes.delete(parent.name)
        else:
            store.indexes.forget(parent.name, record.name)


def _indexed(server: Server, store: Store, parent: Record, record: Record) -> bool:
    """Put the chunks of a document into the index; False if the server ends first. Raises Unreadable."""
    reading = read(store.path(record), record.data["mimeType"])
    chunks = cut(reading, *record.data["chunking"])
    index, embedder = open_index(server, parent)
    title = record.data["displayName"] or reading.title
    vectors = embed_chunks(embedder, title, chunks, store.closing.is_set)
    if vectors is None:
        return False
    index.put(record.name, chunks, vectors, title, documents.resource(record), stamp=str(record.number))
    return True
