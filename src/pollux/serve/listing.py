"""Pages of a list as the API cuts them, newest first: pageSize, pageToken and nextPageToken; for files, caches and batches alike."""

from __future__ import annotations

from starlette.requests import Request

from pollux.serve.errors import ApiError, invalid
from pollux.serve.records import Record
from pollux.serve.server import Server
from pollux.serve.store import Store


def store_of(server: Server) -> Store:
    """Where the server keeps things. Raises ApiError 501 if it keeps nothing."""
    if server.store is None:
        raise ApiError(501, "UNIMPLEMENTED", "this server keeps nothing; start it with a data folder to use files, caches and batches")
    return server.store


def owner_of(request: Request) -> str:
    """Whom the things that a request makes belong to; others do not find them."""
    return getattr(request.state, "owner", "")


async def page(server: Server, request: Request, kind: str, usual: int, most: int) -> tuple[list[Record], dict[str, str]]:
    """The records of the page that the query asks for, and what the answer says of the next one. Raises ApiError 400."""
    query, size = request.query_params, page_size(request, usual, most)
    token = query.get("pageToken") or query.get("page_token")
    found = await server.run(store_of(server).records.newest, kind, owner_of(request), size + 1, _number(token, "pageToken") or None)
    return found[:size], {"nextPageToken": str(found[size - 1].number)} if len(found) > size else {}


def page_size(request: Request, usual: int, most: int) -> int:
    """How many entries a page is to have. Raises ApiError 400."""
    query = request.query_params
    return min(_number(query.get("pageSize") or query.get("page_size"), "pageSize") or usual, most)


def _number(text: str | None, name: str) -> int:
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise invalid(
            f"{name} is {text!r:.40} but must be " + ("a whole number" if name == "pageSize" else "a nextPageToken of the page before")
        )
    return int(text)
