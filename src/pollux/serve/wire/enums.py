"""The enums of the API, with the numbers that its protocol buffers give them."""

from __future__ import annotations

from enum import IntEnum


class Modality(IntEnum):
    """Of counted tokens."""

    MODALITY_UNSPECIFIED = 0
    TEXT = 1
    IMAGE = 2
    VIDEO = 3
    AUDIO = 4
    DOCUMENT = 5


class ResponseModality(IntEnum):
    """Of what a model may answer with."""

    MODALITY_UNSPECIFIED = 0
    TEXT = 1
    IMAGE = 2
    AUDIO = 3
    VIDEO = 4


class MediaResolution(IntEnum):
    MEDIA_RESOLUTION_UNSPECIFIED = 0
    MEDIA_RESOLUTION_LOW = 1
    MEDIA_RESOLUTION_MEDIUM = 2
    MEDIA_RESOLUTION_HIGH = 3
    MEDIA_RESOLUTION_ULTRA_HIGH = 4


class ThinkingLevel(IntEnum):
    THINKING_LEVEL_UNSPECIFIED = 0
    LOW = 1
    MEDIUM = 2
    HIGH = 3
    MINIMAL = 4


class Language(IntEnum):
    LANGUAGE_UNSPECIFIED = 0
    PYTHON = 1


class Outcome(IntEnum):
    OUTCOME_UNSPECIFIED = 0
    OUTCOME_OK = 1
    OUTCOME_FAILED = 2
    OUTCOME_DEADLINE_EXCEEDED = 3


class CallingMode(IntEnum):
    MODE_UNSPECIFIED = 0
    AUTO = 1
    ANY = 2
    NONE = 3
    VALIDATED = 4


class HarmCategory(IntEnum):
    HARM_CATEGORY_UNSPECIFIED = 0
    HARM_CATEGORY_DEROGATORY = 1  # this and the next five: of models before Gemini
    HARM_CATEGORY_TOXICITY = 2
    HARM_CATEGORY_VIOLENCE = 3
    HARM_CATEGORY_SEXUAL = 4
    HARM_CATEGORY_MEDICAL = 5
    HARM_CATEGORY_DANGEROUS = 6
    HARM_CATEGORY_HARASSMENT = 7
    HARM_CATEGORY_HATE_SPEECH = 8
    HARM_CATEGORY_SEXUALLY_EXPLICIT = 9
    HARM_CATEGORY_DANGEROUS_CONTENT = 10
    HARM_CATEGORY_CIVIC_INTEGRITY = 11
    HARM_CATEGORY_JAILBREAK = 12


class HarmBlockThreshold(IntEnum):
    HARM_BLOCK_THRESHOLD_UNSPECIFIED = 0
    BLOCK_LOW_AND_ABOVE = 1
    BLOCK_MEDIUM_AND_ABOVE = 2
    BLOCK_ONLY_HIGH = 3
    BLOCK_NONE = 4
    OFF = 5


class HarmProbability(IntEnum):
    HARM_PROBABILITY_UNSPECIFIED = 0
    NEGLIGIBLE = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4


class BlockReason(IntEnum):
    BLOCK_REASON_UNSPECIFIED = 0
    SAFETY = 1
    OTHER = 2
    BLOCKLIST = 3
    PROHIBITED_CONTENT = 4
    IMAGE_SAFETY = 5


class FinishReason(IntEnum):
    FINISH_REASON_UNSPECIFIED = 0
    STOP = 1
    MAX_TOKENS = 2
    SAFETY = 3
    RECITATION = 4
    OTHER = 5
    LANGUAGE = 6
    BLOCKLIST = 7
    PROHIBITED_CONTENT = 8
    SPII = 9
    MALFORMED_FUNCTION_CALL = 10
    IMAGE_SAFETY = 11
    UNEXPECTED_TOOL_CALL = 12
    NO_IMAGE = 16
