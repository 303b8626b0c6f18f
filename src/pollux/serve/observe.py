"""Times every request, counts it and writes its line of the log. Stands outermost, so it also sees what others refuse."""

from __future__ import annotations

import logging
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pollux.serve.logs import NAME
from pollux.serve.measure import Tally, current_tally
from pollux.serve.metrics import Metrics

log = logging.getLogger(NAME)
QUIET = ("/healthz", "/readyz", "/metrics")  # asked every few seconds by programs that watch the server
METHODS = ("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS", "WEBSOCKET")
_CLIENT_LEFT = 499


class Observed:
    """The answer to each request carries its id in the header x-request-id, under which it stands in the log."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        start, code, ended = time.monotonic(), 0, False
        name = uuid.uuid4().hex[:16]

        async def sending(message: Message) -> None:
            nonlocal code, ended
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                code = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name.encode())]
            elif message["type"] == "websocket.accept":
                code = 101
            ended = message["type"] == "websocket.close" or message["type"].endswith(".body") and not message.get("more_body", False)
            await send(message)

        tally = Tally()
        token = current_tally.set(tally)
        try:
            await self.app(scope, receive, sending)
        except BaseException:
            code = code or 500
            raise
        finally:
            current_tally.reset(token)
            if not ended and scope["type"] == "http":
                code = _CLIENT_LEFT
            self._note(scope, code, time.monotonic() - start, name, tally)

    def _note(self, scope: Scope, code: int, seconds: float, name: str, tally: Tally) -> None:
        method = scope.get("method", "WEBSOCKET")
        method = method if method in METHODS else "other"
        route = route_of(scope)
        self.metrics.requests.labels(route, method, code).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        if scope["path"] in QUIET:
            return
        fields = {"id": name, "method": method, "route": route, "code": code, "seconds": round(seconds, 4)}
        if owner := scope.get("state", {}).get("owner"):
            fields["key"] = owner  # the name that its owner gave it
        if tally.prompt_tokens:
            fields |= {"prompt_tokens": tally.prompt_tokens, "output_tokens": tally.output_tokens}
        if tally.first_token_seconds is not None:
            fields["first_token_seconds"] = round(tally.first_token_seconds, 4)
        log.info("request", extra={"fields": fields})


def route_of(scope: Scope) -> str:
    """The pattern that a request's path fits, such as "/v1beta/models/{model}"; "other" if it fits none.

    Never the path itself, which may hold names and of which clients can invent any number.
    """
    route = scope.get("route")
    if route is None:
        return scope["path"] if scope["path"] in QUIET else "other"
    return scope.get("root_path", "") + getattr(route, "path", "")
