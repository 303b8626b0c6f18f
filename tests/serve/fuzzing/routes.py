"""Requests for every route: those of known routes by the messages that they read, those of others by their pattern alone."""

from __future__ import annotations

import functools
import json
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from fuzzing.damage import Ask, damaged, encoded, mishandled
from fuzzing.values import MODEL, SCHEMAS, hostile, medium, message, plain
from pollux.serve.app import create_app
from pollux.serve.batches import BatchRequest
from pollux.serve.caches import CachedContent
from pollux.serve.openai.batches import BatchRequest as OpenaiBatch
from pollux.serve.openai.messages import ChatRequest, CompletionRequest, EmbeddingRequest
from pollux.serve.openai.words import Detokenize, Tokenize
from pollux.serve.server import VERSIONS, Server
from pollux.serve.upload_target import CreateFileRequest
from pollux.serve.wire.embed import BatchEmbedContentsRequest, EmbedContentRequest
from pollux.serve.wire.file_search import FileSearchStore, ImportFileRequest, UploadToFileSearchStoreRequest
from pollux.serve.wire.films import FilmRequest
from pollux.serve.wire.generate import CountTokensRequest, GenerateContentRequest
from pollux.serve.wire.interactions import CreateInteraction
from pollux.serve.wire.live import AuthToken, ClientMessage
from pollux.serve.wire.predict import PredictRequest

SAID = {"parts": [{"text": "a red"}]}
FEW = {"maxOutputTokens": 6}
SETUP = {"setup": {"model": f"models/{MODEL}", "generationConfig": FEW}}
WEATHER = {"name": "weather", "parameters": SCHEMAS[0]}
LIVE = "/ws/google.ai.generativelanguage.{version}.GenerativeService.BidiGenerateContent"


KINDS = ("files", "cachedContents", "batches", "operations", "interactions", "uploads", "fileSearchStores", "documents")
LATEST = 6  # things of a kind that requests may name
_STANDS_FOR = re.compile(rb"zz(" + "|".join(KINDS).encode() + rb")(\d)zz")


def some(kind: str) -> list[str]:
    """What stands for the names of things of a kind in a request, until it is sent."""
    return [f"zz{kind}{i}zz" for i in range(LATEST)]


class World:
    """Names of what requests made on the server, also of what is no more."""

    def __init__(self):
        self.names: dict[str, list[str]] = {kind: [] for kind in KINDS}

    def resolved(self, ask: Ask) -> Ask:
        """The request with names in it; one that never was where there is none yet."""
        return replace(ask, path=_STANDS_FOR.sub(self._name, ask.path.encode()).decode(), body=_STANDS_FOR.sub(self._name, ask.body))

    def _name(self, match: re.Match) -> bytes:
        names = self.names[match[1].decode()][-LATEST:]
        return names[-1 - int(match[2]) % len(names)].encode() if names else b"nosuch"


FIELDS = {  # of messages that name things
    **dict.fromkeys(("file_uri", "uri", "url"), [f"https://localhost/v1beta/files/{name}" for name in some("files")]),
    "file_name": [f"files/{name}" for name in some("files")],
    "file_id": some("files"),
    "cached_content": [f"cachedContents/{name}" for name in some("cachedContents")],
    "input_file_id": [f"files/{name}" for name in some("files")],
    "file_search_store_names": [[f"fileSearchStores/{name}"] for name in some("fileSearchStores")],
    "previous_interaction_id": some("interactions"),
}


@dataclass(frozen=True)
class Known:
    """A route that reads a message. base: a request that it answers. weight: how often it is asked."""

    path: str
    kind: type
    base: dict
    form: str = "gemini"
    makes: str = ""
    method: str = "POST"
    weight: int = 3


INLINED = {"batch": {"inputConfig": {"requests": {"requests": [{"request": {"contents": [SAID], "generationConfig": FEW}}]}}}}
OPENAI_BATCH = {"input_file_id": some("files")[0], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "a red"}], "max_tokens": 6}
KNOWN = (
    Known("/{version}/models/{model}:generateContent", GenerateContentRequest, {"contents": [SAID], "generationConfig": FEW}, weight=14),
    Known(
        "/{version}/models/{model}:streamGenerateContent", GenerateContentRequest, {"contents": [SAID], "generationConfig": FEW}, weight=8
    ),
    Known("/{version}/models/{model}:countTokens", CountTokensRequest, {"contents": [SAID]}),
    Known("/{version}/models/{model}:embedContent", EmbedContentRequest, {"content": SAID}),
    Known("/{version}/models/{model}:batchEmbedContents", BatchEmbedContentsRequest, {"requests": [{"content": SAID}, {"content": SAID}]}),
    Known("/{version}/models/{model}:batchGenerateContent", BatchRequest, INLINED, makes="batches"),
    Known("/{version}/models/{model}:asyncBatchEmbedContent", BatchRequest, INLINED, makes="batches", weight=1),
    Known("/{version}/models/{model}:predictLongRunning", FilmRequest, {"instances": [{"prompt": "a red"}]}, makes="operations"),
    Known("/{version}/models/{model}:predict", PredictRequest, {"instances": [{"prompt": "a red"}]}),
    Known("/{version}/fileSearchStores", FileSearchStore, {"displayName": "a red"}, makes="fileSearchStores", weight=5),
    Known(
        "/{version}/fileSearchStores/{store}:importFile",
        ImportFileRequest,
        {"fileName": f"files/{some('files')[0]}"},
        makes="documents",
        weight=8,
    ),
    Known("/{version}/cachedContents", CachedContent, {"model": MODEL, "contents": [SAID], "ttl": "600s"}, makes="cachedContents"),
    Known("/{version}/cachedContents/{cache}", CachedContent, {"ttl": "900s"}, method="PATCH", weight=2),
    Known("/{version}/interactions", CreateInteraction, {"model": MODEL, "input": "a red"}, "interactions", "interactions", weight=7),
    Known("/{version}/auth_tokens", AuthToken, {"uses": 1}, weight=1),
    Known("/{version}/chat/completions", ChatRequest, CHAT, "openai", weight=8),
    Known("/{version}/openai/chat/completions", ChatRequest, CHAT, "openai"),
    Known("/{version}/completions", CompletionRequest, {"model": MODEL, "prompt": "a red", "max_tokens": 6}, "openai"),
    Known("/{version}/openai/embeddings", EmbeddingRequest, {"model": MODEL, "input": "a red"}, "openai", weight=1),
    Known("/{version}/embeddings", EmbeddingRequest, {"model": MODEL, "input": ["a", "b"]}, "openai", weight=2),
    Known("/{version}/openai/batches", OpenaiBatch, OPENAI_BATCH, "openai", "batches"),
    Known("/tokenize", Tokenize, {"model": MODEL, "prompt": "a red"}, "openai", weight=2),
    Known("/detokenize", Detokenize, {"model": MODEL, "tokens": [5, 6]}, "openai", weight=2),
)
EMPTY = (  # (method, path, form, weight) of routes that read no message
    *(("GET", f"/{{version}}/{kind}?pageSize=2", "gemini", 1) for kind in ("files", "cachedContents", "batches", "models", "tunedModels")),
    ("GET", "/{version}/fileSearchStores?pageSize=2", "gemini", 1),
    ("GET", "/{version}/fileSearchStores/{store}", "gemini", 1),
    ("DELETE", "/{version}/fileSearchStores/{store}", "gemini", 1),
    ("GET", "/{version}/fileSearchStores/{store}/documents?pageSize=2", "gemini", 1),
    ("GET", "/{version}/fileSearchStores/{store}/documents/{document}", "gemini", 1),
    ("DELETE", "/{version}/fileSearchStores/{store}/documents/{document}?force=true", "gemini", 1),
    ("GET", "/{version}/fileSearchStores/{store}/operations/{document}", "gemini", 1),
    ("GET", "/{version}/fileSearchStores/{store}/upload/operations/{document}", "gemini", 1),
    ("GET", "/{version}/openai/batches", "openai", 1),
    ("GET", "/{version}/openai/batches/{name}", "openai", 1),
    ("POST", "/{version}/openai/batches/{name}/cancel", "openai", 1),
    *((method, "/{version}/files/{file}", "gemini", 3) for method in ("GET", "DELETE")),
    ("GET", "/{version}/files/{file}:download?alt=media", "gemini", 2),
    *((method, "/{version}/cachedContents/{cache}", "gemini", 2) for method in ("GET", "DELETE")),
    *((method, "/{version}/batches/{name}", "gemini", 2) for method in ("GET", "DELETE")),
    ("POST", "/{version}/batches/{name}:cancel", "gemini", 2),
    *((method, "/{version}/interactions/{interaction}", "interactions", 2) for method in ("GET", "DELETE")),
    ("GET", "/{version}/interactions/{interaction}?stream=true", "interactions", 1),
    ("POST", "/{version}/interactions/{interaction}/cancel", "interactions", 2),
    *((method, "/{version}/models/{model}", "gemini", 1) for method in ("GET", "PATCH", "DELETE")),
    *((method, "/{version}/models/{model}/operations/{operation}", "gemini", 2) for method in ("GET", "DELETE")),
    ("POST", "/{version}/models/{model}:{method}", "gemini", 1),
    *(("GET", path, "gemini", 1) for path in ("/", "/page/nosuch", "/page/..%2f", "/healthz", "/readyz", "/metrics", "/nosuch", "*", "//")),
    ("GET", "/{version}/openai/models", "openai", 1),
    ("GET", "/{version}/openai/models/{model}", "openai", 1),
)


@functools.cache
def asks() -> st.SearchStrategy[Ask]:
    """Any request, by how often its route is asked."""
    made = [_known(one) for one in KNOWN for _ in range(one.weight)]
    made += [_empty(*one[:3]) for one in EMPTY for _ in range(one[3])]
    made += [_upload()] * 14 + [_live()] * 6 + [_unknown(pattern, methods) for pattern, methods in others()]
    return st.sampled_from(range(len(made))).flatmap(made.__getitem__)


def others() -> list[tuple[str, tuple[str, ...]]]:
    """Patterns and methods of the routes that are not among those above."""
    known = {(one.method, one.path) for one in KNOWN} | {(method, path.partition("?")[0]) for method, path, *_ in EMPTY}
    covered = {(method, _pattern(path)) for method, path in known}
    found = {}
    for pattern, methods in _walk(create_app(Server({})).routes, ""):
        if left := tuple(sorted(m for m in methods if m not in ("HEAD", "OPTIONS") and (m, _pattern(pattern)) not in covered)):
            if "/upload/" not in pattern:
                found[_pattern(pattern)] = (pattern, left)
    return list(found.values())


def _pattern(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", re.sub(r"^/(\{version\}|v1beta|v1alpha|v1)(?=/)", "/v1", path))


def _walk(routes: list[BaseRoute], before: str) -> Iterator[tuple[str, set[str]]]:
    for route in routes:
        if isinstance(route, Mount):
            yield from _walk(route.routes or [], before + route.path)
        elif isinstance(route, Route):
            yield before + route.path, route.methods or {"GET", "POST"}
        else:
            assert isinstance(route, WebSocketRoute), "a route of a kind that the fuzzer does not know"


@st.composite
def _known(draw, known: Known) -> Ask:
    """Two of five are right, two have something wrong, one has hardly anything right."""
    temper = draw(st.sampled_from(("right", "right", "damaged", "damaged", "wild")))
    data: Any = draw(message(known.kind, wild=temper == "wild", names=FIELDS, most=6 if temper == "wild" else 3))
    if temper != "wild" or draw(st.booleans()):
        data = _merged(known.base, data)
    for _ in range(draw(st.sampled_from((1, 1, 2)) if temper == "damaged" else st.just(0))):
        data = draw(damaged(data))
    path = _path(draw, known.path)
    if ":streamGenerateContent" in path and draw(st.booleans()):
        path += "?alt=sse"
    body = json.dumps(data).encode() if temper == "right" else draw(encoded(data))
    ask = Ask(known.path, known.method, path, (("Content-Type", "application/json"),), body, form=known.form, makes=known.makes)
    return ask if temper == "right" else draw(mishandled(ask))


@st.composite
def _empty(draw, method: str, path: str, form: str) -> Ask:
    body = draw(encoded(draw(plain()))) if draw(st.integers(0, 5)) == 0 else b""
    return draw(mishandled(Ask(path.partition("?")[0], method, _path(draw, path), body=body, form=form)))


@st.composite
def _unknown(draw, pattern: str, methods: tuple[str, ...]) -> Ask:
    body = draw(encoded(draw(plain()))) if draw(st.booleans()) else b""
    form = "openai" if re.match(r"/v1(beta|alpha)?/(openai/|chat/|completions|embeddings)|/(de)?tokenize", pattern) else "gemini"
    return draw(mishandled(Ask(pattern, draw(st.sampled_from(methods)), _path(draw, pattern), body=body, form=form)))


@st.composite
def _upload(draw) -> Ask:
    """A step of an upload: its start, a chunk of it, its end, or a whole one."""
    mime, data = draw(medium())
    route, kind, made = "/upload/{version}/files", CreateFileRequest, "files"
    if draw(st.integers(0, 3)) == 0:
        route, kind, made = (
            "/upload/{version}/fileSearchStores/{store}:uploadToFileSearchStore",
            UploadToFileSearchStoreRequest,
            "documents",
        )
    path = _path(draw, route)
    step = draw(st.sampled_from(("start", "start", "go on", "go on", "go on", "raw", "raw", "multipart", "none")))
    if step == "start":
        headers = [
            ("X-Goog-Upload-Protocol", "resumable"),
            ("X-Goog-Upload-Command", draw(st.sampled_from(("start", "start", "start", "query")))),
            ("X-Goog-Upload-Header-Content-Type", mime),
            ("X-Goog-Upload-Header-Content-Length", draw(st.sampled_from((str(len(data)), str(len(data)), "0", "-1", "9" * 20, "x")))),
        ]
        body = draw(encoded(draw(message(kind, wild=draw(st.booleans())))))
        return draw(mishandled(Ask(route + " start", "POST", path, _ascii(headers), body, makes="uploads")))
    if step == "go on":
        command = draw(st.sampled_from(("upload", "upload, finalize", "upload, finalize", "finalize", "query", "cancel", "x", "")))
        offset = draw(st.sampled_from(("0", "0", "1", "999999", "-1", "x")))
        path += "?upload_id=" + draw(st.sampled_from(some("uploads"))) + "&upload_protocol=resumable"
        headers = [("X-Goog-Upload-Command", command), ("X-Goog-Upload-Offset", offset)]
        return draw(mishandled(Ask(route + " chunk", draw(st.sampled_from(("POST", "PUT"))), path, tuple(headers), data, makes=made)))
    if step == "multipart":
        described = draw(encoded(draw(message(kind, wild=draw(st.booleans())))))
        body = (
            b"--x\r\nContent-Type: application/json\r\n\r\n"
            + described
            + b"\r\n--x\r\nContent-Type: image/png\r\n\r\n"
            + data
            + b"\r\n--x--"
        )
        body = body[: draw(st.sampled_from((len(body), len(body), len(body) // 2)))]
        headers = [
            ("X-Goog-Upload-Protocol", "multipart"),
            ("Content-Type", draw(st.sampled_from(("multipart/related; boundary=x", "multipart/related")))),
        ]
        return draw(mishandled(Ask(route + " multipart", "POST", path, tuple(headers), body, makes=made)))
    headers = [("Content-Type", mime)] + ([("X-Goog-Upload-Protocol", "raw")] if step == "raw" else [])
    return draw(mishandled(Ask(f"{route} {step}", "POST", path, _ascii(headers), data, makes=made)))


@st.composite
def _live(draw) -> Ask:
    """A session: its setup and a few messages; the body is their list."""
    messages = [json.dumps(SETUP)] if draw(st.integers(0, 4)) else []
    for _ in range(draw(st.integers(0, 3))):
        data: Any = draw(message(ClientMessage, wild=draw(st.booleans()), names=FIELDS, most=2))
        if draw(st.booleans()):
            data = {"clientContent": {"turns": [SAID], "turnComplete": True}}
        if draw(st.integers(0, 5)) == 0:
            data = draw(hostile())
        messages.append(draw(encoded(data)).decode("utf-8", "replace"))
    version = draw(st.sampled_from((*VERSIONS, *VERSIONS, "v2")))
    path = LIVE.format(version=version) + draw(
        st.sampled_from(("", "", "", "Constrained", "?key=x", "Constrained?access_token=auth_tokens/x"))
    )
    return Ask("live", "WEBSOCKET", path, body=json.dumps(messages).encode())


def _path(draw, pattern: str) -> str:
    """A path of the pattern; what it names is, was, or never has been there."""
    values = {
        "version": draw(st.sampled_from((*VERSIONS * 10, "v2"))),
        "model": draw(st.sampled_from((MODEL,) * 40 + ("nosuch", "", "%00", "a%2Fb", "x" * 300, "🎈"))),
        "file": draw(st.sampled_from(some("files"))),
        "cache": draw(st.sampled_from(some("cachedContents"))),
        "name": draw(st.sampled_from(some("batches"))),
        "operation": draw(st.sampled_from(some("operations"))),
        "store": draw(st.sampled_from(some("fileSearchStores")[:2])),
        "document": draw(st.sampled_from(some("documents")[:2])),
        "interaction": draw(st.sampled_from(some("interactions"))),
        "method": draw(st.sampled_from(("nosuch", "generatecontent", "generateContent%20", "%3A"))),
    }
    path = re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: values.get(match[1], "x"), pattern)
    if draw(st.integers(0, 7)) == 0:
        path = path.replace(":", "%3A")
    return urllib.parse.quote(path, safe="/:?&=%*")


def _merged(base: dict, data: dict) -> dict:
    """The fields of the data over those of a request that is right; those of generationConfig beside those that it has."""
    made = base | data
    for name, value in base.items():
        if isinstance(value, dict) and isinstance(data.get(name), dict):
            made[name] = value | data[name]
    return made


def _ascii(headers: list[tuple[str, str]]) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((name, value.encode("utf-8")) for name, value in headers)
