"""Messages of what is said: contents with their parts, and the tools that a model may call."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from pollux.serve.wire.enums import CallingMode, Language, Outcome
from pollux.serve.wire.message import wire


@dataclass(frozen=True)
class Blob:
    mime_type: str = ""
    data: bytes = b""
    display_name: str = ""


@dataclass(frozen=True)
class FileData:
    file_uri: str = ""
    mime_type: str = ""
    display_name: str = ""


@dataclass(frozen=True)
class FunctionCall:
    id: str = ""
    name: str = ""
    args: dict[str, Any] | None = None


@dataclass(frozen=True)
class FunctionResponsePart:
    inline_data: Blob | None = wire(oneof="data")
    file_data: FileData | None = wire(oneof="data")


@dataclass(frozen=True)
class FunctionResponse:
    id: str = ""
    name: str = ""
    response: dict[str, Any] | None = None
    parts: tuple[FunctionResponsePart, ...] = ()


@dataclass(frozen=True)
class ExecutableCode:
    id: str = ""
    language: Language = Language.LANGUAGE_UNSPECIFIED
    code: str = ""


@dataclass(frozen=True)
class CodeExecutionResult:
    id: str = ""
    outcome: Outcome = Outcome.OUTCOME_UNSPECIFIED
    output: str = ""


@dataclass(frozen=True)
class VideoMetadata:
    start_offset: datetime.timedelta | None = None
    end_offset: datetime.timedelta | None = None
    fps: float | None = None


@dataclass(frozen=True)
class Part:
    text: str | None = wire(oneof="data")
    inline_data: Blob | None = wire(oneof="data")
    function_call: FunctionCall | None = wire(oneof="data")
    function_response: FunctionResponse | None = wire(oneof="data")
    file_data: FileData | None = wire(oneof="data")
    executable_code: ExecutableCode | None = wire(oneof="data")
    code_execution_result: CodeExecutionResult | None = wire(oneof="data")
    thought: bool = False
    thought_signature: bytes = b""
    video_metadata: VideoMetadata | None = None


@dataclass(frozen=True)
class Content:
    parts: tuple[Part, ...] = ()
    role: str = ""


@dataclass(frozen=True)
class FunctionDeclaration:
    """`parameters` is the OpenAPI subset of the API, `parameters_json_schema` JSON Schema; serve/schema.py reads both."""

    name: str = ""
    description: str = ""
    parameters: dict[str, Any] | None = wire(oneof="parameters")
    parameters_json_schema: dict[str, Any] | None = wire(oneof="parameters")
    response: dict[str, Any] | None = None
    response_json_schema: Any = None


@dataclass(frozen=True)
class Interval:
    start_time: datetime.datetime | None = None
    end_time: datetime.datetime | None = None


@dataclass(frozen=True)
class GoogleSearch:
    time_range_filter: Interval | None = None


@dataclass(frozen=True)
class UrlContext:
    pass


@dataclass(frozen=True)
class FileSearch:
    file_search_store_names: tuple[str, ...] = ()
    top_k: int | None = None
    metadata_filter: str = ""


@dataclass(frozen=True)
class Tool:
    """The others than functions are run by the server (serve/tools)."""

    function_declarations: tuple[FunctionDeclaration, ...] = ()
    code_execution: dict[str, Any] | None = None
    google_search: GoogleSearch | None = None
    google_search_retrieval: GoogleSearch | None = None
    url_context: UrlContext | None = None
    file_search: FileSearch | None = None


@dataclass(frozen=True)
class FunctionCallingConfig:
    mode: CallingMode = CallingMode.MODE_UNSPECIFIED
    allowed_function_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolConfig:
    function_calling_config: FunctionCallingConfig | None = None
    include_server_side_tool_invocations: bool = False
