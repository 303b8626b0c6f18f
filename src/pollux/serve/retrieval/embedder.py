"""Texts as vectors, by the model that is served."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pollux.content import Text
from pollux.generate.model import Model
from pollux.serve.retrieval.chunks import Chunk, searchable

WINDOW = 500  # tokens of a text that are embedded at once
_PROBE = "What tells two models apart is where they put this sentence: 0123456789, äöü, 日本語."


class Embedder:
    """Unit vectors float32 [width] of a model. beside: held while it runs. Raises ValueError for a model without a tokenizer."""

    def __init__(self, model: Model, beside: threading.Lock):
        if model.vocabulary is None:
            raise ValueError("the model has no tokenizer, so it embeds no text")
        self.model, self.width, self._beside = model, model.config.d_model, beside
        self._window = max(1, min(WINDOW, model.config.longest - 4))
        self._probe: np.ndarray | None = None

    def embed(self, text: str) -> np.ndarray | None:
        """The vector of a text; of one longer than the window the mean over its windows, by their tokens. None for one without words."""
        total = np.zeros(self.width, np.float64)
        for piece, tokens in self._pieces(text):
            with self._beside:
                total += tokens * self.model.embed(Text(piece)).astype(np.float64)
        size = float(np.linalg.norm(total))
        return (total / size).astype(np.float32) if size > 0 else None

    @property
    def probe(self) -> np.ndarray:
        """The vector of a fixed text: vectors of two embedders can be compared only if these are the same."""
        if self._probe is None:
            found = self.embed(_PROBE)
            assert found is not None
            self._probe = found
        return self._probe

    def _pieces(self, text: str) -> Iterator[tuple[str, int]]:
        if not text.strip():
            return
        assert self.model.vocabulary is not None
        offsets = self.model.vocabulary.tokenizer.encode(text, add_special_tokens=False).offsets
        starts = range(0, len(offsets), self._window)
        cuts = [0, *(offsets[start][0] for start in starts[1:]), len(text)]
        for i, start in enumerate(starts):
            if piece := text[cuts[i] : cuts[i + 1]].strip():
                yield piece, min(self._window, len(offsets) - start)


def embed_chunks(
    embedder: Embedder | None, title: str, chunks: Sequence[Chunk], stopped: Callable[[], bool]
) -> list[np.ndarray | None] | None:
    """The vectors of the chunks of a document, None without an embedder and for those without words; None for all if it is stopped."""
    vectors: list[np.ndarray | None] = []
    for chunk in chunks:
        if stopped():
            return None
        vectors.append(None if embedder is None else embedder.embed(searchable(title, chunk)))
    return vectors
