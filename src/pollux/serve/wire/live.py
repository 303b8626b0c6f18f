"""Messages of live sessions: what a client sends over the websocket, one of several kinds at a time, and what it is sent."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from pollux.serve.wire.content import Blob, Content, FunctionCall, FunctionResponse, Tool
from pollux.serve.wire.generate import GenerationConfig, ModalityTokenCount, SafetySetting
from pollux.serve.wire.message import wire


class ActivityHandling(IntEnum):
    ACTIVITY_HANDLING_UNSPECIFIED = 0
    START_OF_ACTIVITY_INTERRUPTS = 1
    NO_INTERRUPTION = 2


class StartSensitivity(IntEnum):
    START_SENSITIVITY_UNSPECIFIED = 0
    START_SENSITIVITY_HIGH = 1
    START_SENSITIVITY_LOW = 2


class TurnCompleteReason(IntEnum):
    TURN_COMPLETE_REASON_UNSPECIFIED = 0
    MALFORMED_FUNCTION_CALL = 1
    RESPONSE_REJECTED = 2


@dataclass(frozen=True)
class ActivityDetection:
    """Of speech. silence_duration_ms: that ends a turn; prefix_padding_ms: kept from before the speech began."""

    disabled: bool = False
    start_of_speech_sensitivity: StartSensitivity = StartSensitivity.START_SENSITIVITY_UNSPECIFIED
    silence_duration_ms: int | None = None
    prefix_padding_ms: int | None = None


@dataclass(frozen=True)
class RealtimeInputConfig:
    automatic_activity_detection: ActivityDetection = ActivityDetection()
    activity_handling: ActivityHandling = ActivityHandling.ACTIVITY_HANDLING_UNSPECIFIED


@dataclass(frozen=True)
class SessionResumption:
    handle: str = ""


@dataclass(frozen=True)
class Setup:
    model: str = ""
    generation_config: GenerationConfig = GenerationConfig()
    system_instruction: Content | None = None
    tools: tuple[Tool, ...] = ()
    safety_settings: tuple[SafetySetting, ...] = ()
    realtime_input_config: RealtimeInputConfig = RealtimeInputConfig()
    session_resumption: SessionResumption | None = None


@dataclass(frozen=True)
class ClientContent:
    turns: tuple[Content, ...] = ()
    turn_complete: bool = False


@dataclass(frozen=True)
class RealtimeInput:
    media_chunks: tuple[Blob, ...] = ()
    audio: Blob | None = None
    video: Blob | None = None
    text: str | None = None
    audio_stream_end: bool = False
    activity_start: Any = None
    activity_end: Any = None


@dataclass(frozen=True)
class ToolResponse:
    function_responses: tuple[FunctionResponse, ...] = ()


@dataclass(frozen=True)
class ClientMessage:
    setup: Setup | None = wire(oneof="message")
    client_content: ClientContent | None = wire(oneof="message")
    realtime_input: RealtimeInput | None = wire(oneof="message")
    tool_response: ToolResponse | None = wire(oneof="message")


@dataclass(frozen=True)
class SetupComplete:
    session_id: str = ""


@dataclass(frozen=True)
class ServerContent:
    model_turn: Content | None = None
    grounding_metadata: dict[str, Any] | None = None
    url_context_metadata: dict[str, Any] | None = None
    generation_complete: bool = False
    turn_complete: bool = False
    interrupted: bool = False
    turn_complete_reason: TurnCompleteReason = TurnCompleteReason.TURN_COMPLETE_REASON_UNSPECIFIED


@dataclass(frozen=True)
class ToolCall:
    function_calls: tuple[FunctionCall, ...] = ()


@dataclass(frozen=True)
class ToolCallCancellation:
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class SessionResumptionUpdate:
    new_handle: str = ""
    resumable: bool = False


@dataclass(frozen=True)
class GoAway:
    """The server is about to end the session."""

    time_left: datetime.timedelta | None = None


@dataclass(frozen=True)
class LiveUsage:
    prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    response_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    thoughts_token_count: int | None = None
    total_token_count: int | None = None
    prompt_tokens_details: tuple[ModalityTokenCount, ...] = ()
    response_tokens_details: tuple[ModalityTokenCount, ...] = ()
    tool_use_prompt_tokens_details: tuple[ModalityTokenCount, ...] = ()


@dataclass(frozen=True)
class ServerMessage:
    setup_complete: SetupComplete | None = None
    server_content: ServerContent | None = None
    tool_call: ToolCall | None = None
    tool_call_cancellation: ToolCallCancellation | None = None
    go_away: GoAway | None = None
    session_resumption_update: SessionResumptionUpdate | None = None
    usage_metadata: LiveUsage | None = None


@dataclass(frozen=True)
class AuthToken:
    """What a page in a browser opens sessions with instead of a key. The mask names fields of the setup that a client cannot choose."""

    name: str = ""
    expire_time: datetime.datetime | None = None
    new_session_expire_time: datetime.datetime | None = None
    uses: int | None = None
    bidi_generate_content_setup: Setup | None = None
    field_mask: str = ""
