"""The page at `/`: a chat over the public routes of the API, as static files from the folder `page` beside this module.

The server knows nothing of the page but its files. They are read once, when the application is made, and sent with a content security
policy under which a browser runs no script, loads no style and asks no host but those of this server.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pollux.serve.errors import not_found
from pollux.serve.server import Server

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# What a model writes reaches the page, so nothing that looks like a script in it may ever run: no inline script or style, no
# evaluation, no HTML from strings (trusted types without a policy). blob: is for pictures, sounds and clips of the conversation.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob:",
        "media-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

HEADERS = {
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=(), display-capture=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a browser asks each time whether its copy is still right, and mostly hears 304
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True)
class File:
    """One file of the page, ready to be sent."""

    type: str
    content: bytes
    compressed: bytes
    tag: str

    def answer(self, request: Request) -> Response:
        """The file, or 304 if the browser has it already."""
        headers = HEADERS | {"ETag": self.tag}
        if self.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(self.compressed, headers=headers | {"Content-Encoding": "gzip"}, media_type=self.type)
        return Response(self.content, headers=headers, media_type=self.type)


def read_files() -> dict[str, File]:
    """The files of the page by name."""
    files = {}
    for entry in importlib.resources.files("pollux.serve").joinpath("page").iterdir():
        kind = TYPES.get("." + entry.name.rpartition(".")[2])
        if kind is not None:
            content = entry.read_bytes()
            tag = f'W/"{hashlib.sha256(content).hexdigest()[:20]}"'
            files[entry.name] = File(kind, content, gzip.compress(content, mtime=0), tag)
    return files


def root_routes(server: Server) -> list[BaseRoute]:
    """`/` and the files that it asks for, under `/page/`."""
    files = read_files()

    async def index(request: Request) -> Response:
        return files["index.html"].answer(request)

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            raise not_found(f"the page has no file {name}")
        return files[name].answer(request)

    return [Route("/", index), Route("/page/{name}", file)]
