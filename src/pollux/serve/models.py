"""The list of models that are served, and each of them: what a client may ask of it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pollux.serve.server import Served, Server

METHODS = ("generateContent", "streamGenerateContent", "countTokens", "embedContent", "batchEmbedContents")


def routes(server: Server) -> list[BaseRoute]:
    async def get(request: Request) -> JSONResponse:
        return JSONResponse(described(server.find(request.path_params["model"])))

    return [Route("/models/{model}", get)]


def described(served: Served) -> dict:
    sampling = served.model.sampling
    return {
        "name": f"models/{served.name}",
        "version": served.version,
        "displayName": served.display_name or served.name,
        "supportedGenerationMethods": list(METHODS),
        "temperature": sampling.temperature,
    }
