"""Search over a folder of documents that the operator names, and over nothing else: the files in it are indexed, and read again when they
change."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np

from pollux.serve.retrieval.chunks import Chunk, cut
from pollux.serve.retrieval.embedder import Embedder, embed_chunks
from pollux.serve.retrieval.index import Found, Index
from pollux.serve.retrieval.reading import Unreadable, read, type_of

log = logging.getLogger("pollux.serve")

FRESH_SECONDS = 2.0  # that a search waits for files that have changed
LOOK_SECONDS = 30.0  # between looks at the folder while nobody searches
_WORDS, _OVERLAP = 120, 20  # of a chunk: short ones, for several have to fit into a prompt
_QUOTED = 4  # words at both ends of a passage that its address names


class FolderSearch:
    """Runs a thread from `start` to `close`. base: what stands before the path of a file, within the folder, in its address; by default
    the name of the folder. Raises ValueError if there is no such folder."""

    def __init__(self, folder: str | os.PathLike, index: str | os.PathLike, embedder: Embedder | None, base: str = ""):
        self.folder, self.embedder = Path(folder).resolve(), embedder
        if not self.folder.is_dir():
            raise ValueError(f"{os.fspath(folder)} is no folder to search in")
        self.base = base or f"{quote(os.fsencode(self.folder.name))}/"
        self._index = Index(index, None if embedder is None else embedder.probe)
        self._changed = threading.Condition()
        self._asked, self._begun, self._ended = True, 0, 0  # whether a look at the folder is asked for; how many have begun and ended
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="pollux-search", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._index.close()

    def search(self, query: str, most: int, since: float | None = None, until: float | None = None) -> list[Found]:
        """The best passages, the best first. since, until: when their files were last changed, seconds since 1970. Blocks."""
        self._look(FRESH_SECONDS)
        vector = None if self.embedder is None else self.embedder.embed(query)
        among = None
        if since is not None or until is not None:
            times = {name: int(stamp.partition(":")[0]) / 1e9 for name, stamp in self._index.documents().items()}
            among = [name for name, t in times.items() if (since is None or t >= since) and (until is None or t <= until)]
        return self._index.search(query, vector, most, among)

    def address(self, found: Found) -> str:
        """The address of a passage: its file and, as a browser understands it, its page or its first and last words."""
        if found.chunk.page is not None:
            return f"{found.uri}#page={found.chunk.page}"
        lines = [line.split() for line in re.split(r"\n|[#*>|]", found.chunk.text) if line.strip()]  # a browser finds no text across blocks
        if not lines:
            return found.uri
        first, last = lines[0][:_QUOTED], lines[-1][-_QUOTED:]
        ends = [first, last] if len(lines) > 1 or len(lines[0]) > 2 * _QUOTED else [lines[0]]
        return f"{found.uri}#:~:text={','.join(quote(' '.join(end), safe='').replace('-', '%2D') for end in ends)}"

    def _look(self, seconds: float) -> None:
        """Have the folder looked at from now on, and wait for it as long as that."""
        with self._changed:
            self._asked, number = True, self._begun + 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended >= number or self._closing, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked or self._closing, LOOK_SECONDS)
                if self._closing:
                    return
                self._asked = False
                self._begun += 1
            try:
                self._refresh()
            except Exception:
                log.exception("the folder %s could not be read again", self.folder)
            with self._changed:
                self._ended = self._begun
                self._changed.notify_all()

    def _refresh(self) -> None:
        """Bring the index to what is in the folder; first of all, what is no longer there is not found any more."""
        known, there = self._index.documents(), dict[str, tuple[Path, str]]()
        for path in self._files():
            with contextlib.suppress(OSError):  # it has just gone
                status = path.stat()
                there[_text(os.fsencode(path))] = path, f"{status.st_mtime_ns}:{status.st_size}:{status.st_ino}"
        for name in known.keys() - there.keys():
            self._index.remove(name)
        for name, (path, stamp) in there.items():
            if known.get(name) != stamp and not self._take_in(name, path, stamp):
                return

    def _take_in(self, name: str, path: Path, stamp: str) -> bool:
        """False if the server ends meanwhile. A file that cannot be read is remembered without chunks."""
        title = _text(os.fsencode(path.name))
        chunks: list[Chunk] = []
        vectors: list[np.ndarray | None] = []
        try:
            reading = read(path, type_of(path))
            chunks, title = cut(reading, _WORDS, _OVERLAP), reading.title or title
            embedded = embed_chunks(self.embedder, title, chunks, lambda: self._closing)
            if embedded is None:
                return False
            vectors = embedded
        except (Unreadable, OSError) as error:
            log.warning("%s is not searched: %s", name, error)
        except Exception:
            log.exception("%s is not searched, and is tried again", name)
            return True
        self._index.put(name, chunks, vectors, title, self.base + quote(os.fsencode(path.relative_to(self.folder))), stamp)
        return True

    def _files(self) -> Iterator[Path]:
        """What can be read, but nothing hidden, and no links, which may lead out of the folder."""
        for directory, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(directory, name)
                if not name.startswith(".") and type_of(path) and path.is_file() and not path.is_symlink():
                    yield path


def _text(name: bytes) -> str:
    """A name of a file, which may be in no encoding."""
    return name.decode(errors="backslashreplace")
