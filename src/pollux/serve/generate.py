"""generateContent, streamGenerateContent and countTokens."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from pollux.serve.answer import chunks, details, whole
from pollux.serve.content import read_contents
from pollux.serve.errors import ApiError, api_error, invalid
from pollux.serve.prepare import Caller, Plan, prepare, write_prompt
from pollux.serve.server import Served, Server
from pollux.serve.wire.body import read
from pollux.serve.wire.generate import CountTokensRequest, CountTokensResponse, GenerateContentRequest, GenerateContentResponse
from pollux.serve.wire.message import to_json
from pollux.tokens.interleave import count

T = TypeVar("T")


def routes(server: Server) -> list[BaseRoute]:
    async def plan_of(request: Request) -> Plan:
        served = server.find(request.path_params["model"])
        asked = await read(GenerateContentRequest, request)
        plan = await server.run(prepare, server, served, asked, caller_of(request))
        request.state.ignored += plan.ignored
        return plan

    async def generate_content(request: Request) -> Response:
        plan = await plan_of(request)
        return answered(request, await unless_left(request, whole(server, plan)))

    async def stream_generate_content(request: Request) -> Response:
        plan = await plan_of(request)
        arriving = chunks(server, plan)
        first = await unless_left(request, anext(arriving, None))  # what goes wrong before the first chunk is an error of HTTP
        if request.query_params.get("alt") == "sse":
            return StreamingResponse(_events(request, first, arriving), media_type="text/event-stream")
        return StreamingResponse(_array(request, first, arriving), media_type="application/json")

    async def count_tokens(request: Request) -> Response:
        served = server.find(request.path_params["model"])
        asked = await read(CountTokensRequest, request)
        if unknown := [name for name in request.state.ignored if "." not in name and "[" not in name]:
            raise invalid(f'Unknown name "{unknown[0]:.80}": what is not in contents is counted inside generateContentRequest')
        return answered(request, await server.run(counted, server, served, asked, caller_of(request)))

    return [
        Route("/models/{model}:generateContent", generate_content, methods=["POST"]),
        Route("/models/{model}:streamGenerateContent", stream_generate_content, methods=["POST"]),
        Route("/models/{model}:countTokens", count_tokens, methods=["POST"]),
    ]


def caller_of(request: Request) -> Caller:
    """Who asks, and how long the client is going to wait (`X-Server-Timeout`, seconds). Raises ApiError 400."""
    header = request.headers.get("x-server-timeout")
    try:
        timeout = None if header is None else float(header)
    except ValueError as error:
        raise invalid(f"the header X-Server-Timeout must be a number of seconds, not {header!r:.40}") from error
    if timeout is not None and not timeout > 0:
        raise invalid(f"the header X-Server-Timeout must be positive, not {header!r:.40}")
    return Caller(getattr(request.state, "owner", ""), timeout=timeout)


def counted(server: Server, served: Served, asked: CountTokensRequest, caller: Caller) -> CountTokensResponse:
    """The tokens of a prompt as the model would read it; blocks. Raises ApiError."""
    if asked.contents and asked.generate_content_request is not None:
        raise invalid("contents and generateContentRequest cannot be given together: contents belong inside the request")
    if asked.generate_content_request is not None:
        tokens = prepare(server, served, asked.generate_content_request, caller, look_up=False).prompt_tokens
    elif asked.contents:
        tokens = count(write_prompt(served, read_contents(server, asked.contents, "contents", caller.owner)))
    else:
        raise invalid("contents are missing; give at least one content with a part")
    return CountTokensResponse(sum(tokens.values()), prompt_tokens_details=details(tokens))


def answered(request: Request, message: Any) -> JSONResponse:
    """A message as the answer, with enums by number if the client asked for them so."""
    return JSONResponse(to_json(message, enum_numbers(request)))


def enum_numbers(request: Request) -> bool:
    """`?$alt=json;enum-encoding=int`, as clients made from the protocol buffers send it."""
    return "enum-encoding=int" in request.query_params.get("$alt", request.query_params.get("alt", ""))


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is cancelled if the client leaves first. Raises ApiError 499 then."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "CANCELLED", "the client left before its answer was ready")
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await work that an interruption must not tear apart: it is done before the cancellation goes on."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    request: Request, first: GenerateContentResponse | None, rest: AsyncGenerator[GenerateContentResponse, None]
) -> AsyncIterator[bytes]:
    async for data in _json(request, first, rest):
        yield b"data: " + data + b"\r\n\r\n"


async def _array(
    request: Request, first: GenerateContentResponse | None, rest: AsyncGenerator[GenerateContentResponse, None]
) -> AsyncIterator[bytes]:
    before = b"["
    async for data in _json(request, first, rest):
        yield before + data
        before = b",\r\n"
    yield b"]" if before != b"[" else b"[]"


async def _json(
    request: Request, first: GenerateContentResponse | None, rest: AsyncGenerator[GenerateContentResponse, None]
) -> AsyncIterator[bytes]:
    """Each chunk as JSON; what goes wrong between them is the last one."""
    numbers = enum_numbers(request)
    try:
        if first is not None:
            yield _encoded(to_json(first, numbers))
        async for chunk in rest:
            yield _encoded(to_json(chunk, numbers))
    except Exception as error:
        yield _encoded(api_error(error).json())
    finally:
        await rest.aclose()


def _encoded(data: dict[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
