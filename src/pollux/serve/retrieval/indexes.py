"""The indexes of a server: one file for each collection, in a folder that the server has to itself."""

from __future__ import annotations

import threading
from collections.abc import Collection
from pathlib import Path

from pollux.serve.retrieval import index
from pollux.serve.retrieval.embedder import Embedder
from pollux.serve.retrieval.index import Index


class Indexes:
    """May be used from several threads."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[str, Index] = {}
        self._lock = threading.Lock()

    def open(self, name: str, embedder: Embedder | None) -> Index:
        """The index of a collection, empty if there is none; blocks. embedder: None for one without vectors."""
        probe = None if embedder is None else embedder.probe
        with self._lock:
            if name not in self._open:
                self._open[name] = Index(self._path(name), probe)
            return self._open[name]

    def delete(self, name: str) -> None:
        """Remove the index of a collection, if there is one."""
        with self._lock:
            if name in self._open:
                self._open.pop(name).close()
            index.delete(self._path(name))

    def forget(self, name: str, document: str) -> None:
        """Remove a document from the index of a collection, if that is open; what is left in others is never among what may be found."""
        with self._lock:
            found = self._open.get(name)
        if found is not None:
            found.remove(document)

    def keep_only(self, names: Collection[str]) -> None:
        """Remove the indexes of all other collections."""
        if self.folder.is_dir():
            for file in self.folder.glob("*.sqlite"):
                if file.stem not in names:
                    self.delete(file.stem)

    def close(self) -> None:
        with self._lock:
            for one in self._open.values():
                one.close()
            self._open.clear()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.sqlite"
