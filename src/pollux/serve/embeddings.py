"""embedContent and batchEmbedContents: contents as vectors, from the model's own hidden states."""

from __future__ import annotations

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pollux.serve.content import read_content
from pollux.serve.errors import invalid
from pollux.serve.generate import answered, caller_of
from pollux.serve.server import Served, Server
from pollux.serve.wire.body import read
from pollux.serve.wire.embed import (
    BatchEmbedContentsRequest,
    BatchEmbedContentsResponse,
    ContentEmbedding,
    EmbedContentRequest,
    EmbedContentResponse,
)

MOST = 1000  # of a batch


def routes(server: Server) -> list[BaseRoute]:
    async def embed_content(request: Request) -> Response:
        served = server.find(request.path_params["model"])
        asked = await read(EmbedContentRequest, request)
        return answered(request, EmbedContentResponse(await server.run(embed, server, served, asked, "", caller_of(request).owner)))

    async def batch_embed_contents(request: Request) -> Response:
        served = server.find(request.path_params["model"])
        asked = await read(BatchEmbedContentsRequest, request)
        if not 1 <= len(asked.requests) <= MOST:
            raise invalid(f"requests must be 1 to {MOST}, not {len(asked.requests)}")
        owner = caller_of(request).owner
        made = [await server.run(embed, server, served, one, f"requests[{i}].", owner) for i, one in enumerate(asked.requests)]
        return answered(request, BatchEmbedContentsResponse(tuple(made)))

    return [
        Route("/models/{model}:embedContent", embed_content, methods=["POST"]),
        Route("/models/{model}:batchEmbedContents", batch_embed_contents, methods=["POST"]),
    ]


def embed(server: Server, served: Served, asked: EmbedContentRequest, where: str = "", owner: str = "") -> ContentEmbedding:
    """A unit vector; with outputDimensionality its first numbers, made a unit vector again. Blocks. Raises ApiError 400."""
    if asked.content is None:
        raise invalid(f"{where}content is missing")
    if asked.model and server.find(asked.model) is not served:
        raise invalid(f"{where}model is {asked.model!r:.80}, another than that of the address")
    size, width = asked.output_dimensionality, served.model.config.d_model
    if size is not None and not 1 <= size <= width:
        raise invalid(f"{where}outputDimensionality is {size} but must be between 1 and {width}, the width of the model")
    turns = read_content(server, asked.content, f"{where}content", owner)
    with served.beside:
        vector = served.model.embed(turns, served.input_limit)[:size]
    return ContentEmbedding(tuple(map(float, vector / max(float(np.linalg.norm(vector)), 1e-30))))
