"""What clients say of stores and documents, checked; the answers are `described` in stores.py and documents.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pollux.serve.errors import invalid
from pollux.serve.retrieval.chunks import MOST_WORDS, USUAL_OVERLAP, USUAL_WORDS
from pollux.serve.wire.message import wire

MAX_DISPLAY_NAME = 512
MAX_METADATA = 20
_MAX_KEY, _MAX_VALUE = 128, 2048


@dataclass(frozen=True)
class FileSearchStore:
    display_name: str = ""
    embedding_model: str = ""


@dataclass(frozen=True)
class WhiteSpaceConfig:
    """Tokens are words between white space here, as in the original."""

    max_tokens_per_chunk: int | None = None
    max_overlap_tokens: int | None = None


@dataclass(frozen=True)
class ChunkingConfig:
    white_space_config: WhiteSpaceConfig | None = None


@dataclass(frozen=True)
class StringList:
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class CustomMetadata:
    key: str = ""
    string_value: str | None = wire(oneof="value")
    string_list_value: StringList | None = wire(oneof="value")
    numeric_value: float | None = wire(oneof="value")


@dataclass(frozen=True)
class UploadToFileSearchStoreRequest:
    display_name: str = ""
    mime_type: str = ""
    custom_metadata: tuple[CustomMetadata, ...] = ()
    chunking_config: ChunkingConfig | None = None


@dataclass(frozen=True)
class ImportFileRequest:
    file_name: str = ""
    custom_metadata: tuple[CustomMetadata, ...] = ()
    chunking_config: ChunkingConfig | None = None


def check_display_name(name: str) -> None:
    """Raises ApiError 400."""
    if len(name) > MAX_DISPLAY_NAME:
        raise invalid(f"displayName has {len(name)} characters, more than the limit of {MAX_DISPLAY_NAME}")


def check_metadata(metadata: tuple[CustomMetadata, ...]) -> None:
    """Raises ApiError 400."""
    if len(metadata) > MAX_METADATA:
        raise invalid(f"customMetadata has {len(metadata)} entries, more than the limit of {MAX_METADATA}")
    seen = set()
    for i, one in enumerate(metadata):
        where = f"customMetadata[{i}]"
        if not 0 < len(one.key) <= _MAX_KEY:
            raise invalid(f"{where}.key must have 1 to {_MAX_KEY} characters")
        if one.key in seen:
            raise invalid(f"{where}.key {one.key!r} is given for a second time")
        seen.add(one.key)
        texts = [one.string_value] if one.string_value is not None else list(one.string_list_value.values) if one.string_list_value else []
        if not texts and one.numeric_value is None:
            raise invalid(f"{where} needs a stringValue, a stringListValue or a numericValue")
        if one.numeric_value is not None and not math.isfinite(one.numeric_value):
            raise invalid(f"{where}.numericValue must be a finite number")
        if any(len(text) > _MAX_VALUE for text in texts) or len(texts) > MAX_METADATA:
            raise invalid(f"{where} may have up to {MAX_METADATA} values of up to {_MAX_VALUE} characters")


def chunk_sizes(config: ChunkingConfig | None) -> tuple[int, int]:
    """Most words of a chunk, and words that neighbours share. Raises ApiError 400."""
    asked = config.white_space_config if config is not None else None
    most = asked.max_tokens_per_chunk if asked is not None else None
    words = USUAL_WORDS if most is None else most
    if not 1 <= words <= MOST_WORDS:
        raise invalid(f"chunkingConfig.whiteSpaceConfig.maxTokensPerChunk is {words} but must be between 1 and {MOST_WORDS}")
    overlap = asked.max_overlap_tokens if asked is not None else None
    shared = min(USUAL_OVERLAP, words // 2) if overlap is None else overlap
    if not 0 <= shared <= words // 2:
        raise invalid(
            f"chunkingConfig.whiteSpaceConfig.maxOverlapTokens is {shared} but must be 0 to {words // 2}, half of maxTokensPerChunk"
        )
    return words, shared
