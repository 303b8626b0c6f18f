"""API keys: made once, shown once, and kept as hashes among the server's records.

`pollux keys` writes them, access.py asks for the one that came with a request. Changes hold for a running server at once.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from starlette.datastructures import Headers, QueryParams

from pollux.serve.records import Record, Records

KIND = "key"  # of the records; their names are the hashes
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Key:
    """Whom a key belongs to and how much that one may ask; None: the server's limit for all."""

    name: str
    created: float  # seconds since 1970
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class Keys:
    """The keys among some records. Its methods block."""

    def __init__(self, records: Records):
        self._records = records

    def add(self, name: str, requests_per_minute: int | None = None, tokens_per_minute: int | None = None) -> str:
        """Make a key and return it; it cannot be read again. Raises ValueError for a name that is taken or unfit, or a limit below 1."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"the name {name!r} must be 1 to 63 letters, digits, dots, dashes or underscores")
        for limit in (requests_per_minute, tokens_per_minute):
            if limit is not None and limit < 1:
                raise ValueError(f"a limit of {limit} a minute must be at least 1")
        key = "pollux-" + secrets.token_urlsafe(32)
        with self._records.transaction():
            if self._named(name) is not None:
                raise ValueError(f"there is a key named {name!r} already; remove it first, or choose another name")
            data = {"name": name, "requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
            self._records.add(KIND, _hash(key), data)
        return key

    def remove(self, name: str) -> None:
        """Forget a key. Raises ValueError if there is none of this name."""
        with self._records.transaction():
            record = self._named(name)
            if record is None:
                raise ValueError(f"there is no key named {name!r}; `pollux keys list` shows those there are")
            self._records.delete(record)

    def all(self) -> list[Key]:
        """The oldest first."""
        return [_key(record) for record in self._records.all(KIND)]

    def find(self, key: str) -> Key | None:
        """Whose key this is."""
        record = self._records.get(KIND, _hash(key))
        return _key(record) if record else None

    def _named(self, name: str) -> Record | None:
        return next((record for record in self._records.all(KIND) if record.data["name"] == name), None)


def presented(headers: Headers, query: QueryParams) -> str:
    """The key that came with a request, as Gemini clients (header or query) or OpenAI clients (bearer) send it; "" without one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return headers.get("x-goog-api-key") or query.get("key") or (token.strip() if scheme.lower() == "bearer" else "")


def _key(record: Record) -> Key:
    return Key(record.data["name"], record.created, record.data["requests_per_minute"], record.data["tokens_per_minute"])


def _hash(key: str) -> str:
    """Keys are 256 random bits, which nobody guesses, so one round of SHA-256 without salt is enough to keep them secret at rest."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
