"""Cached contents, batches, file search stores and documents that the client's tests ask for by ids of their authors' account, and tell
whoever runs them to replace.

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
EMBEDDINGS, STORY = "files/mq9e3mg3u2y5", "files/mk4h34zkv33d"  # uploaded by client_tests.py
SECONDS = 30.0  # for a batch or a document to be done


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
    _when_done(server, name)
    return name


def _when_done(server: str, operation: str) -> dict[str, Any]:
    """What an operation has come to."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{server}/v1beta/{operation}") as answer:
            if (found := json.load(answer)).get("done"):
                return found
        time.sleep(0.05)
    raise TimeoutError(f"{operation} was not done in {SECONDS:g} seconds")


def empty_store(server: str) -> str:
    return _post(server, "fileSearchStores", {})


def store(server: str) -> str:
    """With one document, which has the tag that the tests filter by."""
    return document(server).partition("/documents/")[0]


def document(server: str) -> str:
    metadata = [{"key": "tag", "stringValue": "science"}]
    operation = _post(server, f"{empty_store(server)}:importFile", {"fileName": STORY, "customMetadata": metadata})
    return _when_done(server, operation)["response"]["documentName"]


MAKERS: dict[str, Callable[[str], str]] = {
    "fileSearchStores/fr3l0ri2so25-a3r1ump9x821/documents/asurveyofmodernistpoetrytxt-01zyb2rig5gu": document,
    "fileSearchStores/fr3l0ri2so25-a3r1ump9x821/documents/asurveyofmodernistpoetrytxt-uvmqjtmkm1h2": document,
    "fileSearchStores/fr3l0ri2so25-a3r1ump9x821": store,
    "fileSearchStores/5en07ei3kojo-yo8sjqgvx2xf": store,
    "fileSearchStores/gzn7kdl2wpxl-4z2yqvuxbcxw": store,
    "fileSearchStores/7igesc9r2zw9-0mpxpsqubv7s": store,
    "fileSearchStores/my-file-search-store-vjtrjw6re8oz": store,
    "fileSearchStores/my-file-search-store-l65kcyel9lkz": empty_store,
    "fileSearchStores/acxjj7m366ln-aw6xyp94icll": empty_store,
    "fileSearchStores/my-store-37cbhu1nw16r": empty_store,
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
        """The path of a request, or its body, with the name of what was made in place of an id."""
        for name, make in MAKERS.items():
            if name in path:
                if name not in self._made:
                    self._made[name] = make(self.server)
                return path.replace(name, self._made[name])
        return path
