"""Who may ask: the name the server is called by, the web page a request comes from, and its key.

Stands before all routes. What is let through carries in `request.state.owner` whom it belongs to: the name of its key, "" without keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, QueryParams
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from pollux.serve.errors import ApiError
from pollux.serve.keys import Key, Keys, presented
from pollux.serve.limits import Limits
from pollux.serve.measure import current_tally
from pollux.serve.openai import errors as openai

_PAGE = re.compile(r"/|/page/[^/]*|/favicon\.ico")
_UPLOAD = re.compile(r"/upload/.*")


@dataclass(frozen=True)
class Rules:
    """hosts: the names that requests may call the server by, without ports; None: any.

    origins: web pages of other servers that may send requests, such as "https://example.org"; "*": any.
    Limits are for keys that have none of their own and, without keys, for each address; None: no limit.
    """

    keys_required: bool
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self):
        for origin in self.origins:
            parts = urlsplit(origin)
            if origin != "*" and (parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}"):
                raise ValueError(f'the origin {origin!r} must be "*" or like "https://example.org", without a path')
        for limit in (self.requests_per_minute, self.tokens_per_minute):
            if limit is not None and limit < 1:
                raise ValueError(f"a limit of {limit} a minute must be at least 1")


class Access:
    """Lets requests through to `app` by the rules. keys: where they are looked up, None if nothing is stored."""

    def __init__(self, app: ASGIApp, rules: Rules, keys: Keys | None, limits: Limits):
        self.rules, self.keys, self.limits = rules, keys, limits
        self._inner: ASGIApp = _Keyed(app, self)
        if rules.origins:  # answers preflights, which carry no key, and writes the headers that let a page read its answer
            self._inner = CORSMiddleware(
                self._inner,
                allow_origins=rules.origins,
                allow_methods=["GET", "POST", "PATCH", "DELETE"],
                allow_headers=["*"],
                expose_headers=["Retry-After", "Warning", "X-Goog-Upload-URL", "X-Goog-Upload-Status"],
                max_age=3600,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check_host(Headers(scope=scope))
            self._check_origin(Headers(scope=scope))
        except ApiError as error:
            return await openai.answer(scope, error)(scope, receive, send)
        await self._inner(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        """Against DNS rebinding: a page whose own name resolves to this machine is stopped by that name."""
        host = headers.get("host", "")
        if self.rules.hosts is not None and host_name(host) not in self.rules.hosts:
            raise ApiError(
                403, "PERMISSION_DENIED", f"this server is not called {host[:100]!r}; it was started without --host-name for that"
            )

    def _check_origin(self, headers: Headers) -> None:
        """A browser sends some requests of foreign pages without asking first; they are not carried out."""
        origin = headers.get("origin")
        if origin is None or "*" in self.rules.origins or origin in self.rules.origins:
            return
        if _place(origin) != headers.get("host", "").lower():
            raise ApiError(403, "PERMISSION_DENIED", f"pages of {origin[:100]} may not use this server; --cors would let them")


class _Keyed:
    """Behind the checks of host and origin: whose request it is, and whether that one may ask now."""

    def __init__(self, app: ASGIApp, access: Access):
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        state["owner"] = ""
        try:
            if not _is_open(scope):
                await self._admit(scope, state)
        except ApiError as error:
            return await openai.answer(scope, error)(scope, receive, send)
        await self.app(scope, receive, send)

    async def _admit(self, scope: Scope, state: dict) -> None:
        rules = self.access.rules
        key = await self._key(scope)
        if key is not None:
            state["owner"] = key.name
        if scope["type"] == "websocket" or scope["method"] == "POST":
            client = key.name if key else scope["client"][0] if scope.get("client") else ""
            if (tally := current_tally.get()) is not None:
                tally.client = client
            self.access.limits.admit(
                client,
                (key and key.requests_per_minute) or rules.requests_per_minute,
                (key and key.tokens_per_minute) or rules.tokens_per_minute,
            )

    async def _key(self, scope: Scope) -> Key | None:
        """The key of a request; without one, or with one that nobody knows, None if none is required. Raises ApiError."""
        given = presented(Headers(scope=scope), QueryParams(scope["query_string"]))
        found = await run_in_threadpool(self.access.keys.find, given) if given and self.access.keys else None
        if found is None and self.access.rules.keys_required:
            if openai.speaks_openai(scope):
                raise ApiError(
                    401, "UNAUTHENTICATED", "a key is needed that this server knows; send it as a bearer token", "INVALID_API_KEY"
                )
            if given:
                raise ApiError(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", "API_KEY_INVALID")
            raise ApiError(403, "PERMISSION_DENIED", "a key is needed: send it as the header x-goog-api-key, or as ?key=")
        return found


def _place(origin: str) -> str:
    """Host and port of an origin in lower case, "" for one that has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # brackets that hold no address
        return ""


def host_name(host: str) -> str:
    """A Host header in lower case, without its port and the dot at its end: "[::1]:8000" -> "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _is_open(scope: Scope) -> bool:
    """What needs no key: files of the page, pieces of an upload, whose address is a secret, and live sessions that come with a token."""
    if scope["type"] == "websocket":
        return scope["path"].endswith(".BidiGenerateContentConstrained")
    if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and _PAGE.fullmatch(scope["path"]):
        return True
    return scope["type"] == "http" and bool(_UPLOAD.fullmatch(scope["path"])) and "upload_id" in QueryParams(scope["query_string"])
