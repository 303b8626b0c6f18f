"""Damage: to decoded JSON, and to the bytes and headers of a request."""

from __future__ import annotations

import copy
import gzip
import json
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from fuzzing.values import LONG, hostile


@dataclass(frozen=True)
class Ask:
    """One HTTP request. framing: how the end of the body is told."""

    route: str  # under which it is counted
    method: str
    path: str
    headers: tuple[tuple[str, str | bytes], ...] = ()
    body: bytes = b""
    framing: str = "length"  # or "chunked", "short": less comes than is announced, "wrong": no number
    form: str = "gemini"  # of an error: "gemini", "openai" or "interactions"
    makes: str = ""  # what its answer names, for requests to come


ODD_HEADERS: tuple[tuple[str, str | bytes], ...] = (
    *(("X-Server-Timeout", value) for value in ("5", "0.001", "-1", "nan", "inf", "1e400", "x")),
    *(("Accept-Encoding", value) for value in ("gzip", "gzip;q=0, *", "br")),
    *(("x-goog-api-key", value) for value in ("none", "", "a" * 9000, b"\xff\xfe")),
    *(("Authorization", value) for value in ("Bearer x", "Bearer", "Basic Og==", "Token auth_tokens/x")),
    *(("Content-Type", value) for value in ("text/plain", "multipart/form-data", "application/json; charset=utf-16", "", b"\x80")),
    *(("Content-Encoding", value) for value in ("gzip", "identity")),
    *(("Origin", value) for value in ("null", "http://localhost", "https://evil.example", "http://[", b"\xff")),
    *(("Host", value) for value in ("", "evil.example", "[::1", "localhost:99999", b"\xff")),
    *(("Range", value) for value in ("bytes=0-3", "bytes=5-1", "bytes=-", "x", "bytes=0-0,2-2")),
    *(("Expect", value) for value in ("100-continue", "x")),
    *(("If-None-Match", value) for value in ("*", '"')),
    *(("Connection", value) for value in ("close", "upgrade")),
    ("Upgrade", "websocket"),
    ("X-Forwarded-For", "127.0.0.1"),
    ("X-Http-Method-Override", "DELETE"),
    ("X-Goog-Upload-Protocol", "resumable"),
    ("Cookie", "a=" + "b" * 4000),
)


@st.composite
def damaged(draw, data: Any) -> Any:
    """The data with one place of it changed."""
    data = copy.deepcopy(data)
    places = list(_places(data))
    if not places:
        return draw(hostile())
    holder, key = draw(st.sampled_from(places))
    value, kind = holder[key], draw(st.sampled_from(("other", "gone", "list", "many", "deep", "long", "name", "number")))
    if kind == "gone":
        del holder[key]
        return data
    if kind == "name" and isinstance(holder, dict):
        holder[draw(st.sampled_from((f"{key}s", f"_{key}", str(key).upper(), "", "__proto__", "constructor")))] = holder.pop(key)
        return data
    deep: Any = value
    for _ in range(draw(st.sampled_from((3, 60, 101, 900))) if kind == "deep" else 0):
        deep = [deep] if isinstance(key, int) else {str(key): deep}
    holder[key] = {
        "list": [value],
        "many": [value] * 20,
        "deep": deep,
        "long": LONG,
        "number": draw(st.sampled_from((2**31, -1, 10**30, 1e-320, 0))),
    }.get(kind, None)
    if holder[key] is None:
        holder[key] = draw(hostile())
    return data


def _places(data: Any):
    if isinstance(data, dict | list):
        for key in data if isinstance(data, dict) else range(len(data)):
            yield data, key
            yield from _places(data[key])


@st.composite
def encoded(draw, data: Any) -> bytes:
    """JSON of the data, mostly as it should be."""
    body = json.dumps(data, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    kind = draw(st.sampled_from(("whole",) * 20 + ("cut", "bytes", "bom", "utf-16", "half", "nothing", "constant", "doubled", "garbage")))
    if kind == "cut":
        return body[: draw(st.integers(0, max(0, len(body) - 1)))]
    if kind == "bytes":
        at = draw(st.integers(0, len(body)))
        return body[:at] + draw(st.sampled_from((b"\xff", b"\xed\xa0\x80", b"\x00", b"\xc3"))) + body[at:]
    changes = {
        "bom": b"\xef\xbb\xbf" + body,
        "utf-16": json.dumps(data).encode("utf-16"),
        "half": body.replace(b'":', b'\\ud83d":', 1),
        "nothing": b"",
        "constant": body.replace(b"1", b"NaN", 1),
        "doubled": body + body,
        "garbage": gzip.compress(body),
    }
    return changes.get(kind, body)


@st.composite
def mishandled(draw, ask: Ask) -> Ask:
    """The request with odd headers, another method, or a body whose end is told wrongly; mostly as it is."""
    if draw(st.integers(0, 3)) == 0:
        ask = replace(ask, headers=(*ask.headers, *draw(st.lists(st.sampled_from(ODD_HEADERS), min_size=1, max_size=2))))
    kind = draw(st.sampled_from(("same",) * 24 + ("method", "chunked", "chunked", "short", "wrong", "path", "query", "long path")))
    if kind == "method":
        return replace(ask, method=draw(st.sampled_from(("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "FOO"))), makes="")
    if kind in ("chunked", "short", "wrong"):
        return replace(ask, framing=kind, makes="")
    if kind == "path":
        tail = draw(st.sampled_from(("/", "//", "/..", "%00", "%2F..", "%ff", ":x", "%3Ax", "é", ";x", "%252e")))
        return replace(ask, path=ask.path + tail, makes="")
    if kind == "query":
        query = draw(
            st.sampled_from(
                ("alt=sse&alt=x", "pageSize=-1", "pageSize=1&pageToken=9", "pageToken=x%00", "key=%ff", "$alt=json%3Benum-encoding%3Dint")
            )
        )
        return replace(ask, path=ask.path + ("&" if "?" in ask.path else "?") + query)
    if kind == "long path":
        return replace(ask, path=ask.path + "a" * draw(st.sampled_from((300, 5000, 70_000))), makes="")
    return ask
