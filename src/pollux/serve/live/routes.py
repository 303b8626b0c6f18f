"""Where live sessions begin: the websocket and its first message. What goes wrong ends a session with a code and a sentence."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import re

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from pollux.serve import files
from pollux.serve.errors import ApiError, api_error, invalid
from pollux.serve.listing import store_of
from pollux.serve.live import tokens
from pollux.serve.live.session import Session
from pollux.serve.prepare import Caller
from pollux.serve.server import VERSIONS, Server
from pollux.serve.store import new_id
from pollux.serve.wire.body import decode
from pollux.serve.wire.content import Content
from pollux.serve.wire.live import ClientMessage, GoAway, ServerMessage, SessionResumptionUpdate, SetupComplete
from pollux.serve.wire.message import parse, to_json

RESUME_SECONDS = 2 * 3600.0  # in which a session that broke off may be taken up again
SETUP_SECONDS = 30.0  # for the first message
_KIND = "live session"
_CODES = {400: 1007, 401: 1008, 403: 1008, 404: 1008, 429: 1013, 503: 1013}
_TOKEN = re.compile(r"(?i)(?:token|bearer)\s+(auth_tokens/\S+)")


def root_routes(server: Server) -> list[BaseRoute]:
    """One address for each version, and one more for clients that come with a token."""

    async def converse(websocket: WebSocket) -> None:
        await _Connection(server, websocket).run(None)

    async def converse_with_token(websocket: WebSocket) -> None:
        await _Connection(server, websocket).run(_token(websocket))

    names = [f"/ws/google.ai.generativelanguage.{version}.GenerativeService.BidiGenerateContent" for version in VERSIONS]
    names += [f"/{name}" for name in names]  # the official client writes so if its base URL ends with a slash
    return [
        WebSocketRoute(name + end, handler) for name in names for end, handler in (("", converse), ("Constrained", converse_with_token))
    ]


class _Connection:
    """One websocket with the session on it."""

    def __init__(self, server: Server, websocket: WebSocket):
        self.server, self.websocket = server, websocket
        self._owner = getattr(websocket.state, "owner", "")
        self._handles: list[str] = []  # by which the session may be resumed, the latest last

    async def run(self, token: str | None) -> None:
        """Until either side ends it. token: "" for one that is missing, None where none is needed."""
        await self.websocket.accept()
        try:
            admission = None if token is None else await self._admit(token)
            if admission is not None:
                self._owner = admission.owner
            session = await self._begin(admission)
            leaving = asyncio.create_task(self._leave(session))
            try:
                seconds = None if admission is None else admission.ends - store_of(self.server).clock()
                async with asyncio.timeout(seconds):
                    while True:
                        await session.take(await self._receive())
            except TimeoutError as error:
                raise ApiError(401, "UNAUTHENTICATED", "the time of the token is over") from error
            finally:
                leaving.cancel()
                await session.close()
        except WebSocketDisconnect:
            pass  # the client has left, or the session has failed
        except Exception as error:
            await self._fail(error)

    async def _admit(self, token: str) -> tokens.Admission:
        """Raises ApiError for a token that is not good, but only after the first message: before it the official client hears no reason."""
        try:
            return await self.server.run(tokens.admit, self.server, token)
        except ApiError:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.websocket.receive(), SETUP_SECONDS)
            raise

    async def _begin(self, admission: tokens.Admission | None) -> Session:
        """Raises ApiError for a first message that no session can begin with."""
        try:
            setup = (await asyncio.wait_for(self._receive(), SETUP_SECONDS)).setup
        except TimeoutError as error:
            raise invalid(f"no setup came in {SETUP_SECONDS:g} seconds") from error
        if setup is None:
            raise invalid("the first message must have a setup")
        if admission is not None:
            setup = admission.apply(setup)
        session = Session(self.server, setup, Caller(self._owner), self._send, self._fail, self._keep if setup.session_resumption else None)
        await session.check()
        if setup.session_resumption is not None and setup.session_resumption.handle:
            session.history = await self.server.run(self._load, setup.session_resumption.handle)
        await self._send(ServerMessage(setup_complete=SetupComplete(new_id(24))))
        return session

    async def _leave(self, session: Session) -> None:
        """When the server drains, tell the client, let the answer that is under way come to its end, and close."""
        drain = getattr(self.websocket.state, "drain", None)
        if drain is None:
            return
        await drain.begun.wait()
        left = datetime.timedelta(seconds=round(drain.seconds_left, 1) if session.answering else 0)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it has left meanwhile
            await self._send(ServerMessage(go_away=GoAway(left)))
            await session.answered()
            await self.websocket.close(1001, "the server is shutting down")

    async def _receive(self) -> ClientMessage:
        """Raises ApiError for what is no message, WebSocketDisconnect when the client has left."""
        event = await self.websocket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", 1005))
        data = event.get("bytes") or (event.get("text") or "").encode("utf-8", "surrogatepass")
        return await self.server.run(lambda: parse(ClientMessage, decode(data))[0])

    async def _send(self, message: ServerMessage) -> None:
        await self.websocket.send_text(json.dumps(await self.server.run(to_json, message), ensure_ascii=False))

    async def _fail(self, error: Exception) -> None:
        if self.websocket.application_state == self.websocket.client_state == WebSocketState.CONNECTED:
            found = api_error(error)
            await self.websocket.close(_CODES.get(found.code, 1011), found.message.encode()[:120].decode(errors="ignore"))

    async def _keep(self, history: list[Content]) -> None:
        """Store the conversation under a new handle and tell it; the handle before stays, in case the client never hears of this one."""
        update, handle = SessionResumptionUpdate(), new_id(32)
        if self.server.store is not None and await self.server.run(self._save, list(history), handle, self._handles[:-1]):
            self._handles = [*self._handles[-1:], handle]
            update = SessionResumptionUpdate(handle, True)
        await self._send(ServerMessage(session_resumption_update=update))

    def _save(self, history: list[Content], handle: str, old: list[str]) -> bool:
        """False if there is no room for it."""
        store = store_of(self.server)
        data = {"history": [to_json(content) for content in history]}
        size = len(json.dumps(data))
        try:
            with store.records.transaction():
                for name in old:
                    if (record := store.records.get(_KIND, name)) is not None:
                        store.records.delete(record)
                files.check_room(store, self.server.settings, self._owner, size)
                store.records.add(_KIND, handle, data, self._owner, expires=store.clock() + RESUME_SECONDS, size=size)
        except ApiError as error:
            if error.reason != "STORAGE_FULL":
                raise
            return False
        return True

    def _load(self, handle: str) -> list[Content]:
        record = store_of(self.server).records.get(_KIND, handle)
        if record is None or record.owner != self._owner:
            raise invalid("the handle of sessionResumption is unknown, or its time is over")
        return [parse(Content, content)[0] for content in record.data["history"]]


def _token(websocket: WebSocket) -> str:
    match = _TOKEN.fullmatch(websocket.headers.get("authorization", ""))
    return match[1] if match else websocket.query_params.get("access_token", "")
