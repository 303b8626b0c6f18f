"""What all of OpenAI's routes share: finding the model, and answers as a stream of events that ends with [DONE]."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, Protocol

from starlette.responses import StreamingResponse

from pollux.serve.errors import api_error, invalid
from pollux.serve.openai import errors
from pollux.serve.server import Served, Server
from pollux.serve.wire.generate import GenerateContentResponse


class Writer(Protocol):
    """An answer in the making."""

    def chunks(self, response: GenerateContentResponse) -> Iterator[dict[str, Any]]:
        """What a chunk of the answer adds."""

    def last(self) -> dict[str, Any]:
        """The chunk with the usage of all."""


def find(server: Server, name: str) -> Served:
    """Raises ApiError 400 without a name, 404 for one that is not there."""
    if not name:
        raise invalid("model is missing; GET models lists those there are")
    return server.find(name)


def streamed(
    writer: Writer, first: GenerateContentResponse | None, rest: AsyncGenerator[GenerateContentResponse, None], with_usage: bool
) -> StreamingResponse:
    """The chunks of an answer. Raises ApiError 400 if the prompt was blocked, which the first chunk says."""
    data = list(writer.chunks(first)) if first is not None else []
    return StreamingResponse(_events(writer, data, rest, with_usage), media_type="text/event-stream")


async def _events(
    writer: Writer, data: list[dict[str, Any]], rest: AsyncGenerator[GenerateContentResponse, None], with_usage: bool
) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(rest):
        try:
            for chunk in data:
                yield _event(chunk)
            async for response in rest:
                for chunk in writer.chunks(response):
                    yield _event(chunk)
            if with_usage:
                yield _event(writer.last())
        except Exception as error:
            yield _event(errors.body(api_error(error)))
        yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
