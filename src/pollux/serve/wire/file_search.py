"""Requests about fileSearchStores and their documents."""

from __future__ import annotations

from dataclasses import dataclass

from pollux.serve.wire.message import wire


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
