"""The whole server as one ASGI application: the routes of every area under each version of the API, and what surrounds them.

An area is a module with `routes(server)`, mounted under /v1, /v1beta and /v1alpha, or with `root_routes(server)`, mounted at the root.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import BaseRoute, Mount, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pollux.generate.requests import Cancelled, DeadlineExceeded, Overloaded
from pollux.serve import batches, caches, embeddings, files, films, generate, images, models, page, uploads
from pollux.serve.compress import Compressed
from pollux.serve.errors import ApiError
from pollux.serve.file_search import stores
from pollux.serve.file_search import uploads as file_search_uploads
from pollux.serve.interactions import routes as interactions
from pollux.serve.live import routes as live
from pollux.serve.live import tokens
from pollux.serve.openai import routes as openai
from pollux.serve.openai import words
from pollux.serve.openai.errors import answer_error
from pollux.serve.server import VERSIONS, Server
from pollux.serve.tools.own import own_tools
from pollux.serve.upkeep import Upkeep

# What may go wrong without a mistake of ours. Of any other exception starlette, having answered, breaks off the connection.
FORESEEN = (ApiError, HTTPException, ValueError, Overloaded, DeadlineExceeded, Cancelled, TimeoutError)


def create_app(server: Server) -> Starlette:
    """The application; `app.state.server` is the server, `app.state.upkeep` its work behind the requests.

    The lifespan of the app starts and ends that work; who serves it without one calls `start` and `close`.
    """
    server.tools = {**own_tools(server), **server.tools}
    upkeep = Upkeep(server)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        upkeep.start()
        try:
            yield
        finally:  # also where the loop is cut short
            await asyncio.to_thread(upkeep.close)

    app = Starlette(
        routes=[*root_routes(server), *(Mount(f"/{version}", Router(routes(server), redirect_slashes=False)) for version in VERSIONS)],
        exception_handlers=dict.fromkeys((*FORESEEN, Exception), answer_error),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.add_middleware(Warnings)
    app.add_middleware(Compressed)
    app.state.server, app.state.upkeep = server, upkeep
    return app


def routes(server: Server) -> list[BaseRoute]:
    """What every version of the API has."""
    areas = (openai, generate, images, films, interactions, embeddings, batches, caches, models, files, stores, tokens)
    return [*(route for area in areas for route in area.routes(server)), *models.last_routes(server)]


def root_routes(server: Server) -> list[BaseRoute]:
    """What has its own place outside the versions."""
    areas = (page, uploads, file_search_uploads, live, words)
    return [route for area in areas for route in area.root_routes(server)]


class Warnings:
    """Tells the client which fields of its request were ignored (`request.state.ignored`) in a header of the answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        ignored: list[str] = Request(scope).state._state.setdefault("ignored", [])

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and ignored:
                message["headers"] = [*message["headers"], (b"warning", _warning(ignored))]
            await send(message)

        await self.app(scope, receive, sending)


def _warning(ignored: list[str], most: int = 20) -> bytes:
    names = ", ".join(dict.fromkeys(ignored[:most])) + (", ..." if len(ignored) > most else "")
    return b'299 pollux "ignored fields: ' + names[:1000].encode("unicode_escape").replace(b'"', b"'") + b'"'
