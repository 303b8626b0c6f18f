"""What clients say of stores and documents, checked."""

from __future__ import annotations

import math

from pollux.serve.errors import invalid
from pollux.serve.retrieval.chunks import MOST_WORDS, USUAL_OVERLAP, USUAL_WORDS
from pollux.serve.wire.file_search import ChunkingConfig, CustomMetadata, WhiteSpaceConfig

_MAX_DISPLAY_NAME = 512
_MAX_METADATA = 20
_MAX_KEY, _MAX_VALUE = 128, 2048


def check_display_name(name: str) -> None:
    """Raises ApiError 400."""
    if len(name) > _MAX_DISPLAY_NAME:
        raise invalid(f"displayName has {len(name)} characters, more than the limit of {_MAX_DISPLAY_NAME}")


def check_metadata(metadata: tuple[CustomMetadata, ...]) -> None:
    """Raises ApiError 400."""
    if len(metadata) > _MAX_METADATA:
        raise invalid(f"customMetadata has {len(metadata)} entries, more than the limit of {_MAX_METADATA}")
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
        if any(len(text) > _MAX_VALUE for text in texts) or len(texts) > _MAX_METADATA:
            raise invalid(f"{where} may have up to {_MAX_METADATA} values of up to {_MAX_VALUE} characters")


def chunk_sizes(config: ChunkingConfig | None) -> tuple[int, int]:
    """Most words of a chunk, and words that neighbours share. Raises ApiError 400."""
    asked = (config or ChunkingConfig()).white_space_config or WhiteSpaceConfig()
    words = USUAL_WORDS if asked.max_tokens_per_chunk is None else asked.max_tokens_per_chunk
    if not 1 <= words <= MOST_WORDS:
        raise invalid(f"chunkingConfig.whiteSpaceConfig.maxTokensPerChunk is {words} but must be between 1 and {MOST_WORDS}")
    shared = min(USUAL_OVERLAP, words // 2) if asked.max_overlap_tokens is None else asked.max_overlap_tokens
    if not 0 <= shared <= words // 2:
        raise invalid(
            f"chunkingConfig.whiteSpaceConfig.maxOverlapTokens is {shared} but must be 0 to {words // 2}, half of maxTokensPerChunk"
        )
    return words, shared
