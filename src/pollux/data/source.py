"""A source of documents: the one interface between a place where data lives and the mixture that a run trains on.

A source answers for any index, at once and always alike, so that the order of a run is decided elsewhere (`mixture.py`)
and a run can continue anywhere. `sample` and `describe` look into a source for `pollux data`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from pollux.content import Document, Text
from pollux.tokens.interleave import count
from pollux.tokens.sequence import Sequence

BadFiles = Literal["skip", "stop"]
_UNREAD = 1 << 40  # a document of the world that no run comes to


class Source(Protocol):
    """What a mixture reads."""

    @property
    def bad_files(self) -> BadFiles:
        """Whether a document that cannot be read, or is too large for a row, is left out and listed, or ends the run."""

    @property
    def length(self) -> int | None:
        """Number of documents; None = endless (any index >= 0 is valid)."""

    def document(self, index: int) -> Document:
        """Document `index`, a pure function of the index. Raises MediaError naming the file if it cannot be read."""

    def origin(self, index: int) -> str:
        """Where document `index` comes from, in words that help a person find it."""

    def held_out(self) -> Source:
        """Documents of the same kind that a run never reads; its length is 0 if none are kept back."""


class TaskGenerator(Protocol):
    """What `WorldSource` needs of a `pollux.data.world.World`."""

    def document(self, task: str, index: int) -> Document:
        """Training document `index` of a task."""


@dataclass(frozen=True)
class WorldSource:
    """One task of the procedural world, from document `first` on; endless."""

    world: TaskGenerator
    task: str
    first: int = 0
    length: None = None
    bad_files: BadFiles = "skip"  # an hour into a run, one document that is too large should not end it

    def document(self, index: int) -> Document:
        return self.world.document(self.task, self.first + index)

    def origin(self, index: int) -> str:
        return f"document {self.first + index} of the world's task {self.task}"

    def held_out(self) -> WorldSource:
        return dataclasses.replace(self, first=_UNREAD)


def sample(source: Source, n: int) -> Iterator[Document]:
    """The first n documents of a source, or all if it has fewer."""
    for index in range(n if source.length is None else min(n, source.length)):
        yield source.document(index)


def describe(source: Source, n: int, encode: Callable[[Document], Sequence] | None = None) -> dict[str, dict[str, int]]:
    """What the first n documents of a source hold.

    Returns {"documents": {"looked_at", "in_source" (-1 = endless), "branches"}, "parts": {kind of part: number},
    "text": {"characters"}} and, if `encode` (document -> Sequence) is given, "tokens": {modality: number}.
    """
    documents, parts, tokens = Counter(looked_at=0, branches=0), Counter[str](), Counter[str]()
    characters = 0
    for document in sample(source, n):
        documents["looked_at"] += 1
        documents["branches"] += len(document.branches)
        for content in itertools.chain(document.contents, *document.branches):
            parts.update(type(part).__name__.lower() for part in content.parts)
            characters += sum(len(part.text) for part in content.parts if isinstance(part, Text))
        if encode is not None:
            tokens.update(count(encode(document)))
    documents["in_source"] = -1 if source.length is None else source.length
    result = {"documents": dict(documents), "parts": dict(parts), "text": {"characters": characters}}
    return result if encode is None else result | {"tokens": dict(tokens)}
