"""Messages of predict, by which the API's pictures from a prompt are asked for; they have the words of the Imagen models."""

from __future__ import annotations

from dataclasses import dataclass

from pollux.serve.wire.enums import HarmBlockThreshold


@dataclass(frozen=True)
class Instance:
    prompt: str = ""


@dataclass(frozen=True)
class OutputOptions:
    mime_type: str = "image/png"
    compression_quality: int = 75


@dataclass(frozen=True)
class Parameters:
    """personGeneration, language and sampleImageSize have no field: the pictures of a model are of one size, and clients are told that
    these were ignored."""

    sample_count: int = 4
    aspect_ratio: str = ""
    guidance_scale: float | None = None
    safety_setting: HarmBlockThreshold = HarmBlockThreshold.HARM_BLOCK_THRESHOLD_UNSPECIFIED
    include_safety_attributes: bool = False
    include_rai_reason: bool = False
    output_options: OutputOptions = OutputOptions()


@dataclass(frozen=True)
class PredictRequest:
    instances: tuple[Instance, ...] = ()
    parameters: Parameters = Parameters()


@dataclass(frozen=True)
class SafetyAttributes:
    """scores: of the categories, from 0 for negligible to 1 for high."""

    categories: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """A picture, or why there is none, or what was found in the prompt."""

    bytes_base64_encoded: bytes = b""
    mime_type: str = ""
    rai_filtered_reason: str = ""
    content_type: str = ""
    safety_attributes: SafetyAttributes | None = None


@dataclass(frozen=True)
class PredictResponse:
    predictions: tuple[Prediction, ...] = ()
