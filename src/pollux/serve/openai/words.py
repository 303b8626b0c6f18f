"""/tokenize, /detokenize and /tokenizer_info, as vLLM has them: evaluations ask how a text is cut into tokens before they send it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pollux.serve.errors import invalid
from pollux.serve.prepare import beginning, words_of
from pollux.serve.server import Served, Server
from pollux.serve.wire.body import read
from pollux.tokens.vocabulary import Vocabulary


@dataclass(frozen=True)
class Tokenize:
    model: str = ""
    prompt: str | None = None
    add_special_tokens: bool = True


@dataclass(frozen=True)
class Detokenize:
    model: str = ""
    tokens: tuple[int, ...] = ()


def root_routes(server: Server) -> list[BaseRoute]:
    async def tokenize(request: Request) -> JSONResponse:
        asked = await read(Tokenize, request)
        served, vocabulary = _find(server, asked.model)
        if asked.prompt is None:
            raise invalid("prompt is missing; give the text to be cut into tokens")
        ids = await server.run(_ids, vocabulary, asked.prompt)
        if asked.add_special_tokens:
            ids = [*beginning(served), *ids]
        return JSONResponse({"count": len(ids), "max_model_len": served.input_limit, "tokens": ids})

    async def detokenize(request: Request) -> JSONResponse:
        asked = await read(Detokenize, request)
        _, vocabulary = _find(server, asked.model)
        check(asked.tokens, "tokens", vocabulary)
        return JSONResponse({"prompt": await server.run(vocabulary.decode, asked.tokens)})

    async def info(request: Request) -> JSONResponse:
        served, vocabulary = _find(server, request.query_params.get("model", ""))
        names: dict[str, Any] = {"eos_token": _name(vocabulary, vocabulary.stops[0] if vocabulary.stops else None)}
        names |= {f"{name}_token": _name(vocabulary, vocabulary.specials.get(f"<{name}>")) for name in ("bos", "pad")}
        return JSONResponse({"tokenizer_class": "tokenizers.Tokenizer", "model_max_length": served.input_limit, **names})

    return [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/tokenizer_info", info, methods=["GET"]),
    ]


def check(ids: tuple[int, ...], where: str, vocabulary: Vocabulary) -> None:
    """Raises ApiError 400 for an id that is none."""
    for i, one in enumerate(ids):
        if not 0 <= one < vocabulary.size:
            raise invalid(f"{where}[{i}] is {one} but must be an id in [0, {vocabulary.size})")


def _find(server: Server, name: str) -> tuple[Served, Vocabulary]:
    """The model of this name, or the first one without a name. Raises ApiError 404, and 400 for a model that has no words."""
    served = server.find(name) if name else next(iter(server.models.values()))
    return served, words_of(served)


def _ids(vocabulary: Vocabulary, text: str) -> list[int]:
    """A prompt that is the name of a special token and nothing else stands for that token: this is how its id is asked for."""
    special = vocabulary.tokenizer.token_to_id(text)
    return [special] if special is not None and special in vocabulary.special_ids else vocabulary.encode_text(text)


def _name(vocabulary: Vocabulary, i: int | None) -> str | None:
    return None if i is None else vocabulary.tokenizer.id_to_token(i)
