"""Messages of generateContent, streamGenerateContent and countTokens: what is asked and what is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pollux.serve.wire.content import Content, Tool, ToolConfig
from pollux.serve.wire.enums import (
    BlockReason,
    FinishReason,
    HarmBlockThreshold,
    HarmCategory,
    HarmProbability,
    MediaResolution,
    Modality,
    ResponseModality,
    ThinkingLevel,
)
from pollux.serve.wire.message import wire


@dataclass(frozen=True)
class SafetySetting:
    category: HarmCategory = HarmCategory.HARM_CATEGORY_UNSPECIFIED
    threshold: HarmBlockThreshold = HarmBlockThreshold.HARM_BLOCK_THRESHOLD_UNSPECIFIED


@dataclass(frozen=True)
class ThinkingConfig:
    """thinking_budget: the most tokens that thoughts may have; 0 for none, -1 for as many as the model likes."""

    include_thoughts: bool = False
    thinking_budget: int | None = None
    thinking_level: ThinkingLevel = ThinkingLevel.THINKING_LEVEL_UNSPECIFIED


@dataclass(frozen=True)
class SpeechConfig:
    """How a model that speaks is to sound."""

    voice_config: dict[str, Any] | None = wire(oneof="voice")
    multi_speaker_voice_config: dict[str, Any] | None = wire(oneof="voice")
    language_code: str = ""


@dataclass(frozen=True)
class GenerationConfig:
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    candidate_count: int | None = None
    max_output_tokens: int | None = None
    stop_sequences: tuple[str, ...] = ()
    seed: int | None = wire(bits=64)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_logprobs: bool = False
    logprobs: int | None = None
    response_mime_type: str = ""
    response_schema: dict[str, Any] | None = None
    response_json_schema: Any = wire(also=("_responseJsonSchema", "_response_json_schema"))
    response_modalities: tuple[ResponseModality, ...] = ()
    media_resolution: MediaResolution = MediaResolution.MEDIA_RESOLUTION_UNSPECIFIED
    speech_config: SpeechConfig | None = None
    thinking_config: ThinkingConfig | None = None


@dataclass(frozen=True)
class GenerateContentRequest:
    model: str = ""
    contents: tuple[Content, ...] = ()
    system_instruction: Content | None = None
    tools: tuple[Tool, ...] = ()
    tool_config: ToolConfig | None = None
    safety_settings: tuple[SafetySetting, ...] = ()
    generation_config: GenerationConfig = GenerationConfig()
    cached_content: str = ""


@dataclass(frozen=True)
class CountTokensRequest:
    contents: tuple[Content, ...] = ()
    generate_content_request: GenerateContentRequest | None = None


@dataclass(frozen=True)
class ModalityTokenCount:
    modality: Modality = Modality.MODALITY_UNSPECIFIED
    token_count: int | None = None


@dataclass(frozen=True)
class CountTokensResponse:
    total_tokens: int | None = None
    cached_content_token_count: int = 0
    prompt_tokens_details: tuple[ModalityTokenCount, ...] = ()
    cache_tokens_details: tuple[ModalityTokenCount, ...] = ()


@dataclass(frozen=True)
class SafetyRating:
    category: HarmCategory = HarmCategory.HARM_CATEGORY_UNSPECIFIED
    probability: HarmProbability = HarmProbability.HARM_PROBABILITY_UNSPECIFIED
    blocked: bool = False


@dataclass(frozen=True)
class PromptFeedback:
    block_reason: BlockReason | None = None
    block_reason_message: str = ""
    safety_ratings: tuple[SafetyRating, ...] = ()


@dataclass(frozen=True)
class TokenLogprob:
    token: str | None = None
    token_id: int | None = None
    log_probability: float | None = None


@dataclass(frozen=True)
class TopCandidates:
    candidates: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class LogprobsResult:
    top_candidates: tuple[TopCandidates, ...] = ()
    chosen_candidates: tuple[TokenLogprob, ...] = ()
    log_probability_sum: float | None = None


@dataclass(frozen=True)
class Candidate:
    content: Content | None = None
    finish_reason: FinishReason | None = None
    finish_message: str = ""
    index: int | None = None
    safety_ratings: tuple[SafetyRating, ...] = ()
    token_count: int | None = None
    avg_logprobs: float | None = None
    logprobs_result: LogprobsResult | None = None
    grounding_metadata: dict[str, Any] | None = None
    url_context_metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class UsageMetadata:
    prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    candidates_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    thoughts_token_count: int | None = None
    total_token_count: int | None = None
    prompt_tokens_details: tuple[ModalityTokenCount, ...] = ()
    cache_tokens_details: tuple[ModalityTokenCount, ...] = ()
    candidates_tokens_details: tuple[ModalityTokenCount, ...] = ()
    tool_use_prompt_tokens_details: tuple[ModalityTokenCount, ...] = ()


@dataclass(frozen=True)
class GenerateContentResponse:
    candidates: tuple[Candidate, ...] = ()
    prompt_feedback: PromptFeedback | None = None
    usage_metadata: UsageMetadata | None = None
    model_version: str = ""
    response_id: str = ""
