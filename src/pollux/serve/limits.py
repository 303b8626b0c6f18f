"""How much one client may ask: requests and tokens a minute, per key or, without keys, per address; and how long a body may take.

access.py asks before a request goes on, measure.py reports the tokens that were read and written.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pollux.serve.errors import ApiError

BODY_SECONDS = 60.0  # in which some more of a body must have come
_MOST_BUCKETS = 10_000  # before those that are full again are forgotten


class LimitExceeded(ApiError):
    """429 that says when to try again, in a header and in the body."""

    def __init__(self, message: str, seconds: float):
        self.seconds = max(1, math.ceil(seconds))
        super().__init__(429, "RESOURCE_EXHAUSTED", f"{message}; try again in {self.seconds} s", headers={"Retry-After": str(self.seconds)})

    def json(self) -> dict[str, Any]:
        made = super().json()
        made["error"]["details"] = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{self.seconds}s"}]
        return made


class Limits:
    """Allowances that refill evenly over each minute. May be used from several threads. clock: seconds, of any origin."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._lock = clock, threading.Lock()
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}  # (client, what) -> (used, when)
        self._per_minute: dict[tuple[str, str], int] = {}
        self._counted: dict[tuple[str, str], float] = {}  # all that was ever counted of those

    def admit(self, client: str, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        """Count a request. None: no limit. Raises LimitExceeded.

        Tokens are known only afterwards, so a client may go over its allowance with one request and then waits for it to come back.
        """
        with self._lock:
            for what, limit, needed in (("tokens", tokens_per_minute, 0.0), ("requests", requests_per_minute, 1.0)):
                if limit is None:
                    self._per_minute.pop((client, what), None)
                    self._counted.pop((client, what), None)
                    continue
                self._per_minute[client, what] = limit
                used = self._used(client, what)
                self._check(what, limit, used, needed)
                self._count(client, what, used, needed)
            self._forget()

    def check_tokens(self, client: str) -> None:
        """Raises LimitExceeded if a client that was admitted has used up its tokens."""
        with self._lock:
            limit = self._per_minute.get((client, "tokens"))
            if limit is not None:
                self._check("tokens", limit, self._used(client, "tokens"), 0.0)

    def charge(self, client: str, tokens: int) -> None:
        """Count tokens that were read or written for a client whose tokens are limited."""
        with self._lock:
            if (client, "tokens") in self._per_minute:
                self._count(client, "tokens", self._used(client, "tokens"), tokens)

    def counted(self) -> dict[tuple[str, str], tuple[int, float]]:
        """Of each client and what it is limited in, the limit and all that was counted since there was one."""
        with self._lock:
            return {name: (self._per_minute[name], number) for name, number in self._counted.items() if name in self._per_minute}

    def settle(self, name: tuple[str, str], used: float, counted: float) -> None:
        """So much was used of an allowance, here and elsewhere, when `counted` had been counted here."""
        with self._lock:
            if name in self._per_minute and name in self._counted:
                self._buckets[name] = used + self._counted[name] - counted, self._clock()

    def _count(self, client: str, what: str, used: float, more: float) -> None:
        self._buckets[client, what] = used + more, self._clock()
        self._counted[client, what] = self._counted.get((client, what), 0.0) + more

    def _check(self, what: str, limit: int, used: float, needed: float) -> None:
        if used >= limit or used + needed > limit:
            raise LimitExceeded(f"the limit of {limit} {what} a minute is used up", (used + needed - limit) * 60 / limit)

    def _used(self, client: str, what: str) -> float:
        used, when = self._buckets.get((client, what), (0.0, 0.0))
        return max(0.0, used - (self._clock() - when) * self._per_minute[client, what] / 60)

    def _forget(self) -> None:
        if len(self._buckets) > _MOST_BUCKETS:
            for name in [name for name in self._buckets if name not in self._per_minute or self._used(*name) == 0]:
                del self._buckets[name]
                self._per_minute.pop(name, None)
                self._counted.pop(name, None)


class BodyTimeout:
    """Ends requests whose body stops coming with a 408."""

    def __init__(self, app: ASGIApp, seconds: float = BODY_SECONDS):
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        complete = False

        async def receiving() -> Message:
            nonlocal complete
            if complete:  # what may come now is that the client leaves
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self.seconds)
            except TimeoutError as error:
                raise ApiError(
                    408, "DEADLINE_EXCEEDED", f"no more of the request came for {self.seconds:g} s", headers={"Connection": "close"}
                ) from error
            complete = not message.get("more_body", False)
            return message

        await self.app(scope, receiving, send)
