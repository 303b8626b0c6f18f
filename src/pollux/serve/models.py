"""The list of models that are served, and each of them: what a client may ask of it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pollux.serve.errors import ApiError, invalid, not_found
from pollux.serve.prepare import MAX_TEMPERATURE, can_think
from pollux.serve.server import Served, Server
from pollux.serve.tools.toolbox import supported
from pollux.serve.wire.message import to_json

METHODS = (
    "generateContent",
    "streamGenerateContent",
    "countTokens",
    "embedContent",
    "batchEmbedContents",
    "batchGenerateContent",
    "asyncBatchEmbedContent",
    "createCachedContent",
)
USUAL_SIZE, MOST = 50, 1000  # of a page


@dataclass(frozen=True)
class Model:
    """supported_tools: of the server, which may be given to it as `tools`; the original's answer has no such field."""

    name: str
    base_model_id: str
    version: str
    display_name: str
    description: str
    input_token_limit: int
    output_token_limit: int
    supported_generation_methods: tuple[str, ...]
    supported_tools: tuple[str, ...]
    temperature: float | None
    max_temperature: float | None
    top_p: float | None
    top_k: int | None
    thinking: bool = False


def routes(server: Server) -> list[BaseRoute]:
    async def get_all(request: Request) -> JSONResponse:
        names = listed(server)
        start, size = _page(request, len(names))
        models = [to_json(described(server, name)) for name in names[start : start + size]]
        more = {"nextPageToken": str(start + size)} if start + size < len(names) else {}
        return JSONResponse({"models": models} | more)

    async def get(request: Request) -> JSONResponse:
        return JSONResponse(to_json(described(server, request.path_params["model"])))

    async def change(request: Request) -> JSONResponse:
        server.find(request.path_params["model"])
        raise ApiError(405, "UNIMPLEMENTED", "the models of this server cannot be changed or deleted by its clients")

    async def get_tuned(request: Request) -> JSONResponse:
        return JSONResponse({"tunedModels": []})  # what is trained with pollux is served as a model

    return [
        Route("/models", get_all),
        Route("/models/{model}", get),
        Route("/models/{model}", change, methods=["PATCH", "DELETE"]),
        Route("/tunedModels", get_tuned),
    ]


def last_routes(server: Server) -> list[BaseRoute]:
    """For what no other route takes: methods of models that do not exist here, said in the words of the original."""

    async def unknown(request: Request) -> JSONResponse:
        model, method = request.path_params["model"], request.path_params["method"]
        version = request.scope.get("root_path", "").rpartition("/")[2]
        raise not_found(f"models/{model} is not found for API version {version}, or is not supported for {method}.")

    return [Route("/models/{model}:{method}", unknown, methods=["POST"])]


def listed(server: Server) -> list[str]:
    """The names of all models, and their aliases that are names and not patterns."""
    return [*server.models, *(alias for alias in server.aliases if alias not in server.models and not set("*?[") & set(alias))]


def described(server: Server, name: str) -> Model:
    """A model under the name or alias that was asked for. Raises ApiError 404."""
    served: Served = server.find(name)
    sampling = served.model.sampling
    return Model(
        name=f"models/{name.removeprefix('models/')}",
        base_model_id=served.name,
        version=served.version,
        display_name=served.display_name or served.name,
        description=served.description or repr(served.model).strip("<>"),
        input_token_limit=served.input_limit,
        output_token_limit=min(server.settings.max_output_tokens, served.input_limit),
        supported_generation_methods=METHODS + (("predict", "predictLongRunning") if served.model.codec is not None else ()),
        supported_tools=supported(server.tools, served.model.vocabulary),
        temperature=sampling.temperature,
        max_temperature=MAX_TEMPERATURE,
        top_p=sampling.top_p,
        top_k=sampling.top_k or None,
        thinking=can_think(served.model),
    )


def _page(request: Request, total: int) -> tuple[int, int]:
    """Where the page starts and its size. Raises ApiError 400."""
    query = request.query_params
    numbers = []
    for name, other, usual in (("pageToken", "page_token", 0), ("pageSize", "page_size", USUAL_SIZE)):
        text = query.get(name) or query.get(other) or str(usual)
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            raise invalid(f"{name} is {text!r:.40} but must be " + ("a whole number" if name == "pageSize" else "that of the page before"))
        numbers.append(int(text))
    return min(numbers[0], total), min(numbers[1] or USUAL_SIZE, MOST)
