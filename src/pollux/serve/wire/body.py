"""The body of a request, under limits: bytes -> JSON -> message."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from pollux.serve.errors import ApiError, invalid
from pollux.serve.wire import relaxed
from pollux.serve.wire.message import parse

M = TypeVar("M")

MAX_DEPTH = 100  # of objects and lists in each other, as protobuf has it
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")


async def read(kind: type[M], request: Request) -> M:
    """The message in the body; fields it does not know are noted in `request.state.ignored`. Raises ApiError 400."""
    body = await read_body(request, request.app.state.server.settings.max_body)
    message, ignored = await request.app.state.server.run(lambda: parse(kind, decode(body)))
    request.state.ignored += ignored
    return message


async def read_body(request: Request, limit: int) -> bytes:
    """All bytes of the body. Raises ApiError 400 if there are more than `limit`, before reading on."""
    too_large = invalid(f"the request is larger than the limit of {limit} bytes; upload large media to files first")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except ClientDisconnect as error:
        raise ApiError(499, "CANCELLED", "the client left before its request was complete") from error
    return bytes(body)


def decode(body: bytes) -> Any:
    """JSON of a request, also as people write it (relaxed.py); an empty body is an empty object.

    Raises ApiError 400 for what is no JSON, is nested too deeply or holds half a character.
    """
    if not body.strip():
        return {}
    try:
        text = body.decode()
        try:
            data = json.loads(text, parse_constant=_no_constant)
        except ValueError as error:
            data = _relaxed(text, error)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {str(error) or 'it is nested too deeply'}") from error
    _check(data, "", MAX_DEPTH, bool(_SURROGATE.search(body)))
    return data


def _relaxed(text: str, error: ValueError) -> Any:
    """Raises the error that strict JSON ended with if the text is no relaxed JSON either: people look for the first thing that is wrong."""
    if len(text) > relaxed.MOST:
        raise error
    try:
        return relaxed.loads(text, parse_constant=_no_constant)
    except ValueError:
        raise error from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no value of JSON")


def _check(data: Any, where: str, depth: int, surrogates: bool) -> None:
    if depth == 0:
        raise invalid(f"the body is nested more than {MAX_DEPTH} deep")
    if isinstance(data, dict):
        for key, value in data.items():
            path = f"{where}.{key}" if where else key
            if surrogates:
                _check(key, path, depth - 1, surrogates)
            if isinstance(value, dict | list) or surrogates:
                _check(value, path, depth - 1, surrogates)
    elif isinstance(data, list):
        for i, value in enumerate(data):
            if isinstance(value, dict | list) or surrogates:
                _check(value, f"{where}[{i}]", depth - 1, surrogates)
    elif isinstance(data, str) and _HALF.search(data):
        raise invalid(f"{where.encode('ascii', 'backslashreplace').decode()} holds half of a surrogate pair: write the whole character")
