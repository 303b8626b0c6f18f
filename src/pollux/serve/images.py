"""predict: pictures from a prompt, as clients ask the Imagen models for them (`generate_images`), from any model that draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pollux import media
from pollux.serve.answer import whole
from pollux.serve.errors import ApiError, invalid
from pollux.serve.generate import answered, caller_of, unless_left
from pollux.serve.prepare import Caller, Plan, prepare
from pollux.serve.safety import CATEGORIES
from pollux.serve.server import Served, Server
from pollux.serve.wire.body import read
from pollux.serve.wire.content import Content, Part
from pollux.serve.wire.enums import HarmBlockThreshold, HarmProbability, ResponseModality
from pollux.serve.wire.generate import GenerateContentRequest, GenerateContentResponse, GenerationConfig, SafetyRating, SafetySetting
from pollux.serve.wire.predict import Parameters, Prediction, PredictRequest, PredictResponse, SafetyAttributes

MOST = 4  # pictures
MAX_GUIDANCE = 50.0
FORMATS = ("image/png", "image/jpeg")
FILTERED = "the picture was filtered out because of what it may show"


def routes(server: Server) -> list[BaseRoute]:
    async def predict(request: Request) -> Response:
        served = server.find(request.path_params["model"])
        asked = await read(PredictRequest, request)
        plan = await server.run(prepared, server, served, asked, caller_of(request))
        answer = await unless_left(request, whole(server, plan))
        return answered(request, await server.run_writing(predicted, plan, answer, asked.parameters))

    return [Route("/models/{model}:predict", predict, methods=["POST"])]


def prepared(server: Server, served: Served, asked: PredictRequest, caller: Caller) -> Plan:
    """The request for the pictures; blocks. Raises ApiError 400 for what this model cannot draw."""
    if len(asked.instances) != 1 or not asked.instances[0].prompt:
        raise invalid("instances must be one object with a prompt")
    wanted = asked.parameters
    if not 1 <= wanted.sample_count <= MOST:
        raise invalid(f"parameters.sampleCount is {wanted.sample_count} but must be between 1 and {MOST}")
    if wanted.guidance_scale is not None and not 0 <= wanted.guidance_scale <= MAX_GUIDANCE:
        raise invalid(f"parameters.guidanceScale is {wanted.guidance_scale:g} but must be between 0 and {MAX_GUIDANCE:g}")
    if wanted.output_options.mime_type not in FORMATS:
        raise invalid(f"parameters.outputOptions.mimeType is {wanted.output_options.mime_type!r:.80} but must be {' or '.join(FORMATS)}")
    if not 0 <= wanted.output_options.compression_quality <= 100:
        raise invalid("parameters.outputOptions.compressionQuality must be between 0 and 100")
    if served.model.codec is None:
        raise invalid(f"models/{served.name} does not draw")
    drawn = ratio(served.model.codec.size)
    if wanted.aspect_ratio and wanted.aspect_ratio != drawn:
        raise invalid(f"parameters.aspectRatio is {wanted.aspect_ratio!r:.80}, but this model draws pictures of {drawn}")
    threshold = wanted.safety_setting
    chosen = threshold != HarmBlockThreshold.HARM_BLOCK_THRESHOLD_UNSPECIFIED
    several = wanted.sample_count > 1
    plan = prepare(
        server,
        served,
        GenerateContentRequest(
            contents=(Content((Part(text=asked.instances[0].prompt),), "user"),),
            safety_settings=tuple(SafetySetting(category, threshold) for category in CATEGORIES) if chosen else (),
            generation_config=GenerationConfig(
                candidate_count=wanted.sample_count,
                temperature=served.model.sampling.temperature or 1.0 if several else None,  # at 0 they would be alike
                response_modalities=(ResponseModality.IMAGE,),
            ),
        ),
        caller,
    )
    if wanted.guidance_scale is None:
        return plan
    sampling = dataclasses.replace(plan.request.sampling, guidance=wanted.guidance_scale)
    return dataclasses.replace(plan, request=dataclasses.replace(plan.request, sampling=sampling))


def predicted(plan: Plan, answer: GenerateContentResponse, wanted: Parameters) -> PredictResponse:
    """The pictures of an answer in the format that was asked for; blocks. Raises ApiError if one was cut short."""
    made = [_prediction(plan, candidate.content, candidate.safety_ratings, wanted) for candidate in answer.candidates]
    if plan.verdict.blocked:
        made = [Prediction(rai_filtered_reason=FILTERED)] * wanted.sample_count
    kept = [one for one in made if one.bytes_base64_encoded or wanted.include_rai_reason]
    if wanted.include_safety_attributes:
        kept.append(Prediction(content_type="Positive Prompt", safety_attributes=_attributes(plan.verdict.ratings)))
    return PredictResponse(tuple(kept))


def _prediction(plan: Plan, content: Content | None, ratings: Iterable[SafetyRating], wanted: Parameters) -> Prediction:
    png = next((part.inline_data.data for part in (content.parts if content else ()) if part.inline_data), None)
    if png is None:
        if any(rating.blocked for rating in ratings):
            return Prediction(rai_filtered_reason=FILTERED)
        room = plan.request.sampling.max_output_tokens
        raise ApiError(400, "FAILED_PRECONDITION", f"a picture of this model takes more than the {room} tokens that an answer may have")
    attributes = _attributes(ratings) if wanted.include_safety_attributes else None
    options = wanted.output_options
    if options.mime_type != "image/png":
        png = media.encode_image(media.decode_image(png), options.mime_type, options.compression_quality)
    return Prediction(png, options.mime_type, safety_attributes=attributes)


def _attributes(ratings: Iterable[SafetyRating]) -> SafetyAttributes:
    rated = [rating for rating in ratings if rating.probability]
    span = HarmProbability.HIGH - HarmProbability.NEGLIGIBLE
    scores = tuple((rating.probability - HarmProbability.NEGLIGIBLE) / span for rating in rated)
    return SafetyAttributes(tuple(rating.category.name for rating in rated), scores)


def ratio(size: tuple[int, int]) -> str:
    """Of a picture of height and width in pixels, width first."""
    divisor = math.gcd(*size)
    return f"{size[1] // divisor}:{size[0] // divisor}"
