"""Messages of embedContent and batchEmbedContents."""

from __future__ import annotations

from dataclasses import dataclass

from pollux.serve.wire.content import Content


@dataclass(frozen=True)
class EmbedContentRequest:
    """taskType and title have no field here: the models embed by content alone, and clients are told that they were ignored."""

    model: str = ""
    content: Content | None = None
    output_dimensionality: int | None = None


@dataclass(frozen=True)
class BatchEmbedContentsRequest:
    requests: tuple[EmbedContentRequest, ...] = ()


@dataclass(frozen=True)
class ContentEmbedding:
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class EmbedContentResponse:
    embedding: ContentEmbedding = ContentEmbedding()


@dataclass(frozen=True)
class BatchEmbedContentsResponse:
    embeddings: tuple[ContentEmbedding, ...] = ()
