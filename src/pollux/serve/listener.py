"""The HTTP server under the application: uvicorn, with connections that cannot be held open for nothing and an end that waits for answers.

A client must send the head of its request in time and read what it is sent; one that does neither is cut off, and with it ends its job.
"""

from __future__ import annotations

import asyncio
import time
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, h11

from pollux.serve.errors import ApiError
from pollux.serve.gate import Gate

HEAD_SECONDS = 20.0  # for the head of a request, from its first byte or the opening of the connection
READER_SECONDS = 60.0  # in which a client must have read some of what waits for it
IDLE_SECONDS = 75  # between requests of one connection
CLOSING_SECONDS = 2  # for connections that are still open when all answers are written


class Connection(H11Protocol):
    """One connection of HTTP/1.1. What waits for a slow reader is bounded: writing pauses at the transport's high-water mark, 64 KiB."""

    _head_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._abort)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is None and self.conn.their_state is h11.IDLE:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._abort)
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._end_head_timer()

    def send_400_response(self, msg: str) -> None:
        """What was read is no HTTP: answer as to any other mistake, if an answer is not under way already."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            error = ApiError(400, "INVALID_ARGUMENT", f"{msg.removesuffix('.')}: what came is not HTTP/1.1").response()
            headers = [*error.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(error.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def _should_upgrade(self) -> bool:
        """Only a GET of a path below /ws begins a websocket; what else comes with the headers of one is answered like any request."""
        return self.scope["method"] == "GET" and self.scope["path"].lstrip("/").startswith("ws/") and super()._should_upgrade()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._end_head_timer()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head_timer()
        self._end_reader_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_timer = self.loop.call_later(READER_SECONDS, self._abort)

    def resume_writing(self) -> None:
        self._end_reader_timer()
        super().resume_writing()

    def _end_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_reader_timer(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _abort(self) -> None:
        """Drop the connection with all that was not read; closing it would wait for the reader."""
        self.transport.abort()


class Listener(uvicorn.Server):
    """Serves an application around a gate. The first SIGTERM or SIGINT closes the gate and waits up to `drain` seconds for what runs
    behind it; the second ends at once."""

    def __init__(self, app: ASGIApp, gate: Gate, drain: float, **settings: Any):
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws_per_message_deflate=False,  # takes 300 KB of a session, not all of which comes back, and sound hardly shrinks
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=CLOSING_SECONDS,
                **settings,
            )
        )
        self.gate, self.drain = gate, drain
        self._closed_at: float | None = None

    def stop(self) -> None:
        """Take no more requests and end when those inside are answered, at the latest after `drain` seconds."""
        self.gate.state = "draining"
        self._closed_at = time.monotonic()

    def end(self) -> None:
        """Cut off what runs."""
        self.config.timeout_graceful_shutdown = 0
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._closed_at is None:
            self.stop()
        else:
            self.end()

    async def on_tick(self, counter: int) -> bool:
        ended = await super().on_tick(counter)
        if self._closed_at is None:
            return ended or self.gate.error is not None
        self.gate.drain.begin(self._closed_at + self.drain)
        return ended or self.gate.running == 0 or time.monotonic() > self._closed_at + self.drain
