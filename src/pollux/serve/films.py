"""predictLongRunning: films from a prompt, as clients ask the Veo models for them (`generate_videos`), from any model that draws.

A film is one answer of several pictures, each of which the model draws after the prompt and the pictures before it, until it ends its turn.
What is asked for is a record that goes as files do; film_work.py works on it behind the requests, and it ends with files that clients
download.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import secrets
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pollux import content, media
from pollux.generate.drawing import Drawings
from pollux.serve import files
from pollux.serve.errors import ApiError, invalid, not_found
from pollux.serve.generate import caller_of
from pollux.serve.images import FILTERED, ratio
from pollux.serve.listing import owner_of, store_of
from pollux.serve.media import Medium, from_blob, from_file
from pollux.serve.prepare import Caller, Plan, prepare
from pollux.serve.records import Record
from pollux.serve.server import Served, Server
from pollux.serve.store import Store, new_id
from pollux.serve.wire.body import read
from pollux.serve.wire.content import Blob, Content, FileData, Part
from pollux.serve.wire.enums import ResponseModality
from pollux.serve.wire.films import FilmRequest, Instance, Parameters
from pollux.serve.wire.generate import GenerateContentRequest, GenerateContentResponse, GenerationConfig
from pollux.tokens.image import resize

MOST = 4  # films
LEAST_FRAMES, MOST_FRAMES = 2, 8  # of a film that is drawn at once
MOST_SECONDS = 8  # that they may be spread over
FRAME_SECONDS = 0.5  # that one is shown if the request does not say
MOST_BEFORE = 64  # frames of a film that is to go on
MIME_TYPE = "video/mp4"
_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1beta.PredictLongRunningResponse"


def routes(server: Server) -> list[BaseRoute]:
    async def predict(request: Request) -> JSONResponse:
        name = request.path_params["model"]
        served = server.find(name)
        asked = await read(FilmRequest, request)
        record = await server.run(_create, server, served, name, asked, caller_of(request))
        request.app.state.upkeep.changed()
        return JSONResponse(described(record, request))

    async def get(request: Request) -> JSONResponse:
        return JSONResponse(described(await _asked(request), request))

    async def delete(request: Request) -> JSONResponse:
        await server.run(store_of(server).delete, await _asked(request))
        request.app.state.upkeep.changed()
        return JSONResponse({})

    async def _asked(request: Request) -> Record:
        model, name = request.path_params["model"], request.path_params["operation"]
        record = await server.run(store_of(server).records.get, "film", name)
        if record is None or record.owner != owner_of(request) or record.data["model"] != model:
            raise not_found(f"there is no operation models/{model:.80}/operations/{name:.80}")
        return record

    return [
        Route("/models/{model}:predictLongRunning", predict, methods=["POST"]),
        Route("/models/{model}/operations/{operation}", get, methods=["GET"]),
        Route("/models/{model}/operations/{operation}", delete, methods=["DELETE"]),
    ]


def unfinished(store: Store) -> list[Record]:
    return [record for record in store.records.all("film") if not record.data["done"]]


def planned(server: Server, served: Served, data: dict[str, Any], caller: Caller) -> Plan:
    """The request for the frames; blocks. data: of the record. Raises ApiError 400 for what this model cannot draw."""
    model = served.model
    assert model.codec is not None and model.vocabulary is not None
    contents: tuple[Content, ...] = (Content((Part(text=data["prompt"]),), "user"),) if data["prompt"] else ()
    if data["before"]:  # the turn of the model has begun with the last frame there is
        contents += (Content((Part(inline_data=Blob("image/png", base64.b64decode(data["before"][-1]))),), "model"),)
    config = GenerationConfig(
        candidate_count=data["count"],
        seed=data["seed"],
        temperature=model.sampling.temperature or 1.0,  # at 0 all films of a request would be alike
        response_modalities=(ResponseModality.IMAGE,),
    )
    plan = prepare(server, served, GenerateContentRequest(contents=contents, generation_config=config), caller)
    least, most = (number - bool(data["before"]) for number in (LEAST_FRAMES, MOST_FRAMES))
    room, picture = plan.request.sampling.max_output_tokens, model.codec.encode(np.zeros((1, *model.codec.size, 3), np.uint8)).size + 2
    if (fit := (room - 1) // picture) < least:
        message = f"a film of this model takes at least {least * picture + 1} tokens, more than the {room} that an answer may have here"
        raise ApiError(400, "FAILED_PRECONDITION", message)
    constraint = Drawings(model.vocabulary, model.config.vocab_size, least, min(most, fit))
    return dataclasses.replace(plan, request=dataclasses.replace(plan.request, constraint=constraint))


def finish(server: Server, record: Record, plan: Plan, answer: GenerateContentResponse) -> None:
    """Make files of the frames and end the operation; blocks. Raises ApiError if there is no room for them."""
    store, data = store_of(server), record.data
    if plan.verdict.blocked:
        end(store, record, filtered=data["count"])
        return
    clips = [_clip(data, candidate.content) for candidate in answer.candidates]
    films = [media.encode_video(clip, MIME_TYPE) for clip in clips]
    with contextlib.ExitStack() as stack:
        uploads = [stack.enter_context(files.making(store, record.owner)) for _ in films]
        for upload, film in zip(uploads, films, strict=True):
            store.write(upload, 0, film)
            store.sync(upload)
            store.keep(upload)
        with store.records.transaction():
            files.check_room(store, server.settings, record.owner, sum(map(len, films)))
            names = []
            for upload, film, clip in zip(uploads, films, clips, strict=True):
                about = "", "", MIME_TYPE, hashlib.sha256(film).digest(), len(film), record.owner
                names.append(files.add(server, upload, *about, source="GENERATED", known=files.of_clip(clip.times)).name)
            if not end(store, record, files=names):
                raise ApiError(409, "ABORTED", "the film is made by another server, or has expired")


def end(store: Store, record: Record, **changes: Any) -> bool:
    """End the operation: with `files`, the number of films that were `filtered` out, or an `error`. False if it has ended already or is
    another server's now. Blocks."""
    with store.records.transaction():
        now = store.records.get("film", record.name)
        if now is None or now.data["done"] or not store.leases.take([record]):
            return False
        store.records.update(now, {"done": True, "before": [], **changes})
    return True


def described(record: Record, request: Request) -> dict[str, Any]:
    """The operation."""
    data = record.data
    shown: dict[str, Any] = {"name": f"models/{data['model']}/operations/{record.name}"}
    if not data["done"]:
        return shown
    if data["error"]:
        return shown | {"done": True, "error": data["error"]}
    made: dict[str, Any] = {"generatedSamples": [{"video": {"uri": files.download_uri(name, request)}} for name in data["files"]]}
    if data["filtered"]:
        made = {"raiMediaFilteredCount": data["filtered"], "raiMediaFilteredReasons": [FILTERED.replace("picture", "film")]}
    return shown | {"done": True, "response": {"@type": _TYPE, "generateVideoResponse": made}}


def _create(server: Server, served: Served, model: str, asked: FilmRequest, caller: Caller) -> Record:
    """The record of a film. Blocks. Raises ApiError for what cannot be made."""
    store = store_of(server)
    if len(asked.instances) != 1:
        raise invalid("instances must be one object with a prompt, an image or a video")
    if served.model.codec is None:
        raise invalid(f"models/{served.name} does not draw")
    _check(asked.instances[0], asked.parameters, served.model.codec.size)
    before, times = _before(server, served, asked.instances[0], caller.owner)
    data = {
        "model": model,
        "prompt": asked.instances[0].prompt,
        "count": asked.parameters.sample_count,
        "seconds": asked.parameters.duration_seconds,
        "seed": secrets.randbits(31) if asked.parameters.seed is None else asked.parameters.seed,
        "before": [base64.b64encode(media.encode_image(pixels)).decode() for pixels in before],
        "times": times,
        "done": False,
        "files": [],
        "filtered": 0,
        "error": None,
    }
    planned(server, served, data, caller)
    return store.records.add("film", new_id(12), data, caller.owner, store.clock() + server.settings.file_lifetime)


def _check(instance: Instance, wanted: Parameters, size: tuple[int, int]) -> None:
    if not instance.prompt and instance.image is None and instance.video is None:
        raise invalid("instances must be one object with a prompt, an image or a video")
    if instance.image is not None and instance.video is not None:
        raise invalid(
            "instances[0].image and instances[0].video cannot be given together: a film begins with a picture or goes on from a film"
        )
    for name, given in (("lastFrame", instance.last_frame), ("referenceImages", instance.reference_images)):
        if given is not None:
            raise invalid(f"instances[0].{name} is not supported: this model draws a film from its beginning and knows nothing of its end")
    if not 1 <= wanted.sample_count <= MOST:
        raise invalid(f"parameters.sampleCount is {wanted.sample_count} but must be between 1 and {MOST}")
    if wanted.duration_seconds is not None and not 1 <= wanted.duration_seconds <= MOST_SECONDS:
        raise invalid(f"parameters.durationSeconds is {wanted.duration_seconds:g} but must be between 1 and {MOST_SECONDS}")
    if wanted.fps is not None:
        raise invalid("parameters.fps is not supported: the frames that the model draws are spread evenly over durationSeconds")
    if wanted.aspect_ratio and wanted.aspect_ratio != ratio(size):
        raise invalid(f"parameters.aspectRatio is {wanted.aspect_ratio!r:.80}, but this model draws films of {ratio(size)}")
    if wanted.resolution and wanted.resolution != f"{size[0]}p":
        raise invalid(f"parameters.resolution is {wanted.resolution!r:.80}, but this model draws films of {size[0]}p")


def _before(server: Server, served: Served, instance: Instance, owner: str) -> tuple[list[np.ndarray], list[float]]:
    """The frames that are there already, uint8 [H, W, 3] in the size that the model draws, and when each is shown, and when the last one
    ends, in seconds; the picture that a film begins with has no times. Blocks. Raises ApiError."""
    codec, limits = served.model.codec, served.model.limits
    assert codec is not None
    if instance.image is not None:
        given = from_blob(Blob(instance.image.mime_type, instance.image.bytes_base64_encoded), "instances[0].image")
        return [resize(_only(given, content.Image, "image").pixels(limits), *codec.size)], []
    if instance.video is None:
        return [], []
    where, video = "instances[0].video", instance.video
    if video.uri:
        given = from_file(server, FileData(video.uri, video.encoding), where, owner)
    else:
        given = from_blob(Blob(video.encoding, video.encoded_video), where)
    frames, times = _only(given, content.Video, "video").frames(0, MOST_BEFORE + 1, limits)
    if len(frames) > MOST_BEFORE:
        raise invalid(f"{where} has more than {MOST_BEFORE} frames, which is all that a film may have that is to go on")
    end = times[-1] * len(times) / max(len(times) - 1, 1) or FRAME_SECONDS
    return [resize(frame, *codec.size) for frame in frames], [*times.tolist(), float(end)]


def _only(given: list[Medium], kind: type, name: str) -> Any:
    if len(given) != 1 or not isinstance(given[0], kind):
        raise invalid(f"instances[0].{name} must be one {name}")
    return given[0]


def _clip(data: dict[str, Any], answer: Content | None) -> media.VideoArray:
    """The film: what was there before and the pictures of an answer, spread evenly over the seconds that were asked for."""
    pictures = [media.decode_image(part.inline_data.data) for part in (answer.parts if answer else ()) if part.inline_data]
    before = [media.decode_image(base64.b64decode(picture)) for picture in data["before"]]
    *times, start = data["times"] or [0.0]
    new = len(pictures) + (0 if data["times"] else len(before))  # frames that the seconds are for
    seconds = data["seconds"] or new * FRAME_SECONDS
    times += [start + i * seconds / new for i in range(new)]
    return media.VideoArray(np.stack([*before, *pictures]), np.array(times))
