"""OpenAI's routes: chat completions, completions, embeddings, models and batches, under every version of the API and under its /openai.

Models and batches are asked for by clients of both APIs. Whoever sends a key as a bearer token gets OpenAI's answer, everybody else the
other one.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Mount, Route, Router
from starlette.types import Scope

from pollux.serve.answer import chunks, whole
from pollux.serve.embeddings import MOST, embed
from pollux.serve.errors import invalid
from pollux.serve.generate import caller_of, unless_left
from pollux.serve.models import listed
from pollux.serve.openai import batches, completions, errors
from pollux.serve.openai.asked import to_gemini
from pollux.serve.openai.messages import ChatRequest, EmbeddingRequest
from pollux.serve.openai.stream import find, streamed
from pollux.serve.openai.written import Completion
from pollux.serve.prepare import Plan, prepare
from pollux.serve.server import Served, Server
from pollux.serve.wire.body import read
from pollux.serve.wire.content import Content, Part
from pollux.serve.wire.embed import EmbedContentRequest


def routes(server: Server) -> list[BaseRoute]:
    async def chat(request: Request) -> Response:
        asked = await read(ChatRequest, request)
        served = find(server, asked.model)

        def ready() -> Plan:
            return prepare(server, served, to_gemini(asked, request.state.ignored), caller_of(request))

        plan = await server.run(ready)
        completion = Completion(asked.model, asked.logprobs)
        if not asked.stream:
            return JSONResponse(completion.whole(await unless_left(request, whole(server, plan))))
        arriving = chunks(server, plan)
        first = await unless_left(request, anext(arriving, None))  # what goes wrong before the first chunk is an error of HTTP
        return streamed(completion, first, arriving, asked.stream_options.include_usage)

    async def embeddings(request: Request) -> Response:
        asked = await read(EmbeddingRequest, request)
        return JSONResponse(await embedded(server, asked, caller_of(request).owner, server.run))

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_described(server, name) for name in listed(server)]})

    async def model(request: Request) -> Response:
        name = request.path_params["model"].removeprefix("models/")
        server.find(name)
        return JSONResponse(_described(server, name))

    own: list[BaseRoute] = [
        Route("/chat/completions", chat, methods=["POST"]),
        Route("/completions", completions.endpoint(server), methods=["POST"]),
        Route("/embeddings", embeddings, methods=["POST"]),
    ]
    of_batches = batches.Batches(server)
    shared: list[BaseRoute] = [
        *(_ForOpenAI("/models", models), _ForOpenAI("/models/{model:path}", model)),
        _ForOpenAI("/batches", of_batches.create, methods=["POST"]),
        _ForOpenAI("/batches", of_batches.get_all),
        _ForOpenAI("/batches/{batch:path}/cancel", of_batches.cancel, methods=["POST"]),
        _ForOpenAI("/batches/{batch:path}", of_batches.get),
    ]
    return [*own, *shared, Mount("/openai", Router([*own, *shared], redirect_slashes=False))]


async def embedded(server: Server, asked: EmbeddingRequest, owner: str, run: Callable[..., Awaitable[Any]]) -> dict[str, Any]:
    """The answer to a request of embeddings. run: calls what blocks on a thread. Raises ApiError."""
    served = find(server, asked.model)
    if asked.encoding_format not in ("", "float", "base64"):
        raise invalid(f'encoding_format must be "float" or "base64", not {asked.encoding_format!r:.40}')
    data, read_tokens = [], 0
    for i, text in enumerate(_texts(asked.input)):
        one = EmbedContentRequest(content=Content((Part(text=text),)), output_dimensionality=asked.dimensions)
        vector = (await run(embed, server, served, one, f"input[{i}]: ", owner)).values
        shown: Any = _packed(vector) if asked.encoding_format == "base64" else vector
        data.append({"object": "embedding", "index": i, "embedding": shown})
        read_tokens += await run(_count, served, text)
    used = {"prompt_tokens": read_tokens, "total_tokens": read_tokens}
    return {"object": "list", "data": data, "model": asked.model, "usage": used}


class _ForOpenAI(Route):
    """A route that only OpenAI's clients see, because Gemini's ask the same path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if errors.speaks_openai(scope) else (Match.NONE, {})


def _described(server: Server, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(server.started), "owned_by": "pollux"}


def _texts(given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not 1 <= len(texts) <= MOST or not all(isinstance(text, str) and text for text in texts):
        raise invalid(f"input must be a text or a list of 1 to {MOST} texts, none of them empty; numbers of tokens are not read")
    return texts


def _count(served: Served, text: str) -> int:
    assert served.model.vocabulary is not None, "a model without words has embedded nothing"
    return len(served.model.vocabulary.encode_text(text))


def _packed(vector: tuple[float, ...]) -> str:
    return base64.b64encode(np.array(vector, "<f4").tobytes()).decode()
