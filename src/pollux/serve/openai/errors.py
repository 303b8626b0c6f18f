"""Errors on the routes of either API, each in the form that its clients read."""

from __future__ import annotations

import re
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Scope

from pollux.serve.errors import ApiError, request_error

_ROUTES = re.compile(r"/v1(beta|alpha)?/(openai/.*|chat/completions|completions|embeddings)|/tokenize|/detokenize|/tokenizer_info")
_SHARED = re.compile(r"/v1(beta|alpha)?/(models|batches)(/[^:]*)?")
_TYPES = {
    "UNAUTHENTICATED": "authentication_error",
    "PERMISSION_DENIED": "permission_error",
    "NOT_FOUND": "not_found_error",
    "RESOURCE_EXHAUSTED": "rate_limit_error",
}


def speaks_openai(scope: Scope) -> bool:
    """Whether a request comes from a client of OpenAI's API. The path says so, or for what both have, how the key comes."""
    if _ROUTES.fullmatch(scope["path"]):
        return True
    return bool(_SHARED.fullmatch(scope["path"])) and "authorization" in Headers(scope=scope)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """The exception handler of the app."""
    return answer(request.scope, request_error(request, error))


def answer(scope: Scope, error: ApiError) -> JSONResponse:
    """An error in the form that the client of a request reads."""
    return response(error) if speaks_openai(scope) else error.response()


def body(error: ApiError) -> dict[str, Any]:
    """The error in OpenAI's form."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.code < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.reason.lower() or None}}


def response(error: ApiError) -> JSONResponse:
    """The error with its status code and headers."""
    return JSONResponse(body(error), status_code=error.code, headers=error.headers)
