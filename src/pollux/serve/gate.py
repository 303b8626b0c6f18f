"""The outermost door of the server: closed while the model loads and while the server drains, with answers for who asks how it is.

/healthz says that the process lives, /readyz whether it takes requests. Everything else goes on to the application, once there is one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from typing import Literal

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pollux.serve.errors import ApiError

State = Literal["loading", "warming", "ready", "draining"]
RETRY_SECONDS = 5


class Drain:
    """The end of the server, for what would go on for ever: in `request.state.drain` of what is inside."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self._ends = 0.0

    def begin(self, ends: float) -> None:
        """What runs may go on until `ends`, time.monotonic(). To be called in the event loop."""
        self._ends = ends
        self.begun.set()

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._ends - time.monotonic())


class Gate:
    """An ASGI application around one that comes later. `running` counts the requests and sessions inside.

    `state` may be set, and `open` and `fail` called, from any thread; then `opened` is set or `error` says why not.
    """

    def __init__(self) -> None:
        self.state: State = "loading"
        self.running = 0
        self.drain = Drain()
        self.opened = threading.Event()
        self.error: Exception | None = None
        self._app: ASGIApp | None = None
        self._coming: concurrent.futures.Future[tuple[ASGIApp, Starlette]] = concurrent.futures.Future()

    def open(self, app: ASGIApp, inner: Starlette) -> None:
        """Let requests in to `app`, as soon as the lifespan of the application within it has begun."""
        self._coming.set_result((app, inner))

    def fail(self, error: Exception) -> None:
        """There will be no application; the listener ends."""
        self._coming.set_exception(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        if scope["type"] == "http" and scope["path"] in ("/healthz", "/readyz"):
            return await self._health(scope["path"])(scope, receive, send)
        app = self._app
        if self.state != "ready" or app is None:
            return await self._refused().response()(scope, receive, send)
        scope.setdefault("state", {})["drain"] = self.drain
        self.running += 1
        try:
            await app(scope, receive, send)
        finally:
            self.running -= 1

    async def _live(self, receive: Receive, send: Send) -> None:
        """The lifespan of the server, with that of the application from when it comes."""
        await receive()
        await send({"type": "lifespan.startup.complete"})
        ending, coming = asyncio.ensure_future(receive()), asyncio.wrap_future(self._coming)
        await asyncio.wait((ending, coming), return_when=asyncio.FIRST_COMPLETED)
        if coming.done():
            try:
                await self._keep_open(*coming.result(), ending)
            except Exception as error:
                self.error = error
        await ending
        await send({"type": "lifespan.shutdown.complete"})

    async def _keep_open(self, app: ASGIApp, inner: Starlette, ending: asyncio.Future) -> None:
        async with inner.router.lifespan_context(inner):
            self._app = app
            if self.state != "draining":
                self.state = "ready"
            self.opened.set()
            await asyncio.wait((ending,))

    def _health(self, path: str) -> JSONResponse:
        well = path == "/healthz" or self.state == "ready"
        return JSONResponse({"status": self.state, "running": self.running}, status_code=200 if well else 503)

    def _refused(self) -> ApiError:
        what = "is shutting down" if self.state == "draining" else "is still loading its model"
        headers = {"Retry-After": str(RETRY_SECONDS), "Connection": "close"}
        return ApiError(503, "UNAVAILABLE", f"the server {what}; send the request again later", headers=headers)
