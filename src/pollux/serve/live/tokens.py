"""Tokens that stand for a key in one or a few live sessions, so that a page in a browser needs no key, and the settings they fix.

Only the hash of a token is stored; who holds the token may open sessions as the owner of the key that made it.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pollux.serve.errors import ApiError, invalid
from pollux.serve.listing import owner_of, store_of
from pollux.serve.server import Server
from pollux.serve.store import new_id
from pollux.serve.times import rfc3339
from pollux.serve.wire.body import read
from pollux.serve.wire.live import AuthToken, Setup
from pollux.serve.wire.message import parse, to_json

BEGIN_SECONDS = 60.0  # in which a session must begin, if the request does not say
LAST_SECONDS = 30 * 60.0  # in which a session must end
MOST_SECONDS = 20 * 3600.0  # that a token may be good for
PREFIX = "auth_tokens/"
_KIND = "live token"


@dataclasses.dataclass(frozen=True)
class Admission:
    """To a session: whose it is, when it must end in seconds since 1970, and how the token changes its setup."""

    owner: str
    ends: float
    fixed: Setup | None
    mask: tuple[str, ...] | None

    def apply(self, setup: Setup) -> Setup:
        """The setup that counts. Without a mask, a setup in the token takes the place of the client's."""
        if self.mask is None:
            return setup if self.fixed is None else self.fixed
        for path in self.mask:
            setup = _replaced(setup, self.fixed or Setup(), path.split("."))
        return setup


def routes(server: Server) -> list[BaseRoute]:
    async def create(request: Request) -> JSONResponse:
        asked = await read(AuthToken, request)
        name = await server.run(_add, server, asked, owner_of(request))
        return JSONResponse(to_json(dataclasses.replace(asked, name=name)))

    return [Route("/auth_tokens", create, methods=["POST"])]


def admit(server: Server, name: str) -> Admission:
    """Use a token for one session; blocks. Raises ApiError 401 for one that nobody knows, is used up or too old."""
    refused = ApiError(401, "UNAUTHENTICATED", "the token is unknown, has expired or was used as often as it may be")
    store = store_of(server)
    with store.records.transaction():
        record = store.records.get(_KIND, _hash(name))
        if record is None or store.clock() > record.data["begins"] or record.data["uses"] == 0:
            raise refused
        if record.data["uses"] is not None:
            store.records.update(record, {"uses": record.data["uses"] - 1})
    setup, mask = record.data["setup"], record.data["mask"]
    return Admission(
        record.owner, record.data["ends"], None if setup is None else parse(Setup, setup)[0], None if mask is None else tuple(mask)
    )


def _add(server: Server, asked: AuthToken, owner: str) -> str:
    store = store_of(server)
    now = store.clock()
    begins = _moment(asked.new_session_expire_time, now, BEGIN_SECONDS, "newSessionExpireTime")
    ends = _moment(asked.expire_time, now, LAST_SECONDS, "expireTime")
    uses = 1 if asked.uses is None else asked.uses
    if uses < 0:
        raise invalid(f"uses is {uses}, but must be 0, for any number, or more")
    mask = [path for path in map(_path, asked.field_mask.split(",")) if path] if asked.field_mask else None
    setup = asked.bidi_generate_content_setup
    if setup is not None and setup.model:
        server.find(setup.model)
    name = PREFIX + new_id(48)
    data = {"begins": begins, "ends": ends, "uses": uses or None, "mask": mask, "setup": None if setup is None else to_json(setup)}
    store.records.add(_KIND, _hash(name), data, owner, expires=max(begins, ends))
    return name


def _moment(given: datetime.datetime | None, now: float, usual: float, name: str) -> float:
    moment = now + usual if given is None else given.timestamp()
    if not now < moment <= now + MOST_SECONDS:
        raise invalid(f"{name} is {rfc3339(moment)}, but must be within the next {MOST_SECONDS / 3600:g} hours")
    return moment


def _path(path: str) -> str:
    """A path of a field mask as the setup's own: generationConfig.top_k -> generation_config.top_k; "" for fields without effect."""
    names = [re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), name) for name in path.strip().split(".")]
    values: Any = Setup()
    for name in names:
        if not dataclasses.is_dataclass(values) or name not in {field.name for field in dataclasses.fields(values)}:
            return ""
        values = getattr(values, name)
    return ".".join(names)


def _replaced(setup: Any, fixed: Any, names: list[str]) -> Any:
    """The setup with one field, however deep, taken from the other."""
    first, *rest = names
    value = getattr(fixed, first)
    return dataclasses.replace(setup, **{first: _replaced(getattr(setup, first), value, rest) if rest else value})


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
