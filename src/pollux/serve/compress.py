"""Answers in gzip for clients that accept it: whole JSON answers only, so that streams keep their pace and media are not packed twice."""

from __future__ import annotations

import gzip

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LEVEL = 1  # little slower than copying; JSON gains most of what it can


class Compressed:
    """Answers to uploads stay as they are: their clients read nothing but headers."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        accepted = scope["type"] == "http" and "gzip" in Headers(scope=scope).get("accept-encoding", "")
        if not accepted or scope["path"].startswith("/upload/"):
            return await self.app(scope, receive, send)
        start: Message = {}

        async def sending(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if start:
                message = await _packed(start, message)
                await send(start)
                start = {}
            await send(message)

        await self.app(scope, receive, sending)


async def _packed(start: Message, message: Message) -> Message:
    """The body, packed if it is a whole JSON answer; `start` then says so."""
    headers = MutableHeaders(raw=start["headers"])
    body = message.get("body", b"")
    if not headers.get("content-type", "").startswith("application/json") or "content-encoding" in headers:
        return message
    headers.add_vary_header("Accept-Encoding")
    if message.get("more_body") or not body:
        return message
    packed = await run_in_threadpool(gzip.compress, body, LEVEL)
    start["headers"] = headers.raw
    headers["Content-Encoding"], headers["Content-Length"] = "gzip", str(len(packed))
    return {**message, "body": packed}
