"""Messages of the interactions route: what may be asked, all in snake_case on the wire, and the steps that a conversation is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pollux.serve.wire.enums import HarmBlockThreshold, ResponseModality
from pollux.serve.wire.message import wire


@dataclass(frozen=True)
class Block:
    """A piece of content: its type is one of text, image, audio, video and document. annotations: of a text of the model's, which it does
    not read again."""

    type: str = ""
    text: str = ""
    data: bytes = b""
    uri: str = ""
    mime_type: str = ""
    annotations: Any = None


@dataclass(frozen=True)
class Step:
    """content: of user_input and model_output; summary, signature: of thought; id, name, arguments: of function_call; the rest and a
    name: of function_result."""

    type: str = ""
    content: tuple[Block, ...] = ()
    summary: Any = None
    signature: str = ""
    id: str = ""
    name: str = ""
    arguments: dict[str, Any] | None = None
    call_id: str = ""
    result: Any = None
    is_error: bool = False


@dataclass(frozen=True)
class InteractionTool:
    """name, description, parameters: of function; search_types: of google_search; the rest: of file_search."""

    type: str = ""
    name: str = ""
    description: str = ""
    parameters: dict[str, Any] | None = None
    search_types: tuple[str, ...] = ()
    file_search_store_names: tuple[str, ...] = ()
    metadata_filter: str = ""
    top_k: int | None = None


@dataclass(frozen=True)
class AllowedTools:
    mode: str = ""
    tools: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolChoice:
    allowed_tools: AllowedTools | None = None


@dataclass(frozen=True)
class InteractionConfig:
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = wire(bits=64)
    stop_sequences: tuple[str, ...] = ()
    max_output_tokens: int | None = None
    thinking_level: str = ""
    thinking_summaries: str = ""
    tool_choice: Any = None


@dataclass(frozen=True)
class ResponseFormat:
    """type: text, image, audio or video; any other object is a JSON schema by itself."""

    type: str = ""
    mime_type: str = ""
    schema: Any = None


@dataclass(frozen=True)
class InteractionSafety:
    type: str = ""
    threshold: HarmBlockThreshold = HarmBlockThreshold.HARM_BLOCK_THRESHOLD_UNSPECIFIED


@dataclass(frozen=True)
class CreateInteraction:
    model: str = ""
    agent: str = ""
    input: Any = None
    system_instruction: str = ""
    tools: tuple[InteractionTool, ...] = ()
    generation_config: InteractionConfig = InteractionConfig()
    response_format: Any = None
    response_mime_type: str = ""
    response_modalities: tuple[ResponseModality, ...] = ()
    safety_settings: tuple[InteractionSafety, ...] = ()
    cached_content: str = ""
    previous_interaction_id: str = ""
    stream: bool = False
    store: bool = True
    background: bool = False
