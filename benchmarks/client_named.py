"""Cached contents and batches that the client's tests ask for by ids of their authors' account, and tell whoever runs them to replace.

For each test that asks for one it is made on the server under test, and its own name takes the place of the id; files, whose names a client
may choose, are uploaded by client_tests.py. Runs inside the client's pytest and needs nothing but Python.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

MODEL = "models/gemini-2.5-flash"
CONTENT = {"role": "user", "parts": [{"text": "what is the number after 1?"}]}
EMBEDDINGS = "files/mq9e3mg3u2y5"  # uploaded by client_tests.py
SECONDS = 30.0  # for a batch to be done


def _post(server: str, path: str, body: dict[str, Any]) -> str:
    """The name of what was made."""
    request = urllib.request.Request(f"{server}/v1beta/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["name"]


def cached_content(server: str) -> str:
    return _post(server, "cachedContents", {"model": MODEL, "contents": [CONTENT], "ttl": "86400s"})


def batch(server: str) -> str:
    return _post(server, f"{MODEL}:batchGenerateContent", {"batch": {"inputConfig": _inline({"contents": [CONTENT]})}})


def embeddings(server: str) -> str:
    return _done(server, _inline({"content": CONTENT}))


def embeddings_of_file(server: str) -> str:
    return _done(server, {"fileName": EMBEDDINGS})


def _inline(request: dict[str, Any]) -> dict[str, Any]:
    return {"requests": {"requests": [{"request": request}]}}


def _done(server: str, source: dict[str, Any]) -> str:
    """A batch of embeddings that is finished."""
    name = _post(server, f"{MODEL}:asyncBatchEmbedContent", {"batch": {"inputConfig": source}})
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{server}/v1beta/{name}") as answer:
            if json.load(answer)["done"]:
                return name
        time.sleep(0.05)
    raise TimeoutError(f"{name} was not done in {SECONDS:g} seconds")


MAKERS: dict[str, Callable[[str], str]] = {
    "cachedContents/o239k1gxzz0juy9wqstndhncr85krehehf551hqh": cached_content,
    "batches/z2p8ksus4lyxt25rntl3fpd67p2niw4hfij5": batch,
    "batches/0yew7plxupyybd7appsrq5vw7w0lp3l79lab": batch,
    "batches/70h2jo0ic2t1zejyl0p4jgi8mk1gj0wvjusv": batch,
    "batches/wdx71o8cgbzoa6gg3be1mg7g8ulrhapcjgo3": embeddings,
    "batches/507oatd242het8ox60pwsmn7tcmtkrj8itff": embeddings_of_file,
}


class Named:
    """server: its URL. `renew` before each test."""

    def __init__(self, server: str):
        self.server = server
        self._made: dict[str, str] = {}

    def renew(self) -> None:
        self._made = {}

    def path(self, path: str) -> str:
        """The path of a request with the name of what was made in place of an id."""
        for name, make in MAKERS.items():
            if name in path:
                if name not in self._made:
                    self._made[name] = make(self.server)
                return path.replace(name, self._made[name])
        return path
