"""Messages of OpenAI's API that are read here. Fields that have no place here are ignored, and clients are told so in a header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Url:
    url: str = ""
    detail: str = ""


@dataclass(frozen=True)
class InputAudio:
    data: bytes = b""
    format: str = ""


@dataclass(frozen=True)
class InputFile:
    file_data: str = ""  # a data URL
    file_id: str = ""


@dataclass(frozen=True)
class ContentPart:
    type: str = ""
    text: str | None = None
    refusal: str | None = None
    image_url: Url | None = None
    video_url: Url | None = None
    input_audio: InputAudio | None = None
    file: InputFile | None = None


@dataclass(frozen=True)
class CalledFunction:
    name: str = ""
    arguments: str = ""  # JSON


@dataclass(frozen=True)
class ToolCall:
    id: str = ""
    type: str = ""
    function: CalledFunction | None = None


@dataclass(frozen=True)
class Message:
    role: str = ""
    content: Any = None  # a text or a list of ContentPart
    refusal: str | None = None
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True)
class Function:
    name: str = ""
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True)
class Tool:
    type: str = ""
    function: Function | None = None


@dataclass(frozen=True)
class JsonSchema:
    name: str = ""
    description: str = ""
    schema: Any = None
    strict: bool = False


@dataclass(frozen=True)
class ResponseFormat:
    type: str = ""
    json_schema: JsonSchema | None = None


@dataclass(frozen=True)
class StreamOptions:
    include_usage: bool = False


@dataclass(frozen=True)
class Sampled:
    """What either kind of completion may be asked with."""

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # not OpenAI's, but clients of other servers send it
    stop: Any = None  # a text or a list of texts
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None


@dataclass(frozen=True)
class ChatRequest(Sampled):
    messages: tuple[Message, ...] = ()
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    modalities: tuple[str, ...] = ()
    response_format: ResponseFormat | None = None
    reasoning_effort: str = ""
    tools: tuple[Tool, ...] = ()
    tool_choice: Any = None  # a word or an object
    functions: Any = None
    function_call: Any = None


@dataclass(frozen=True)
class CompletionRequest(Sampled):
    prompt: Any = None  # a text, ids, or a list of these
    logprobs: int | None = None  # alternatives for each token
    echo: bool = False
    suffix: str = ""
    best_of: int | None = None


@dataclass(frozen=True)
class EmbeddingRequest:
    model: str = ""
    input: Any = None  # a text or a list of texts
    encoding_format: str = ""
    dimensions: int | None = None
