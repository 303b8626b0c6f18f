"""Sending a request byte by byte as it is, and what must hold of its answer."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from dataclasses import dataclass

import websockets
from websockets.sync.client import connect

from fuzzing.damage import Ask

HANGS = 240.0  # seconds without a byte
STANDSTILL = 15.0  # after which a connection without an answer may be one that the server took for dead
SESSION_SECONDS = 0.5  # that a session is listened to after its last message
BROKEN = 0  # the status of a connection that ended without an answer
PLAIN = ("image/", "audio/", "video/", "text/", "application/")  # types of downloads
STATUSES = re.compile(r"[A-Z][A-Z_]+")


@dataclass(frozen=True)
class Answer:
    status: int  # of HTTP, or with which a session was closed
    headers: dict[str, str]
    body: bytes
    wrong: str = ""  # what must not be


def send(address: tuple[str, int], ask: Ask) -> Answer:
    """The answer, judged. Does not raise for anything that a server may do."""
    begun = time.monotonic()
    answer = _sent(address, ask)
    if answer.status == BROKEN and time.monotonic() > begun + STANDSTILL:
        answer = _sent(address, ask)  # the machine stood still, and the server cut off a connection that said nothing
    return answer


def _sent(address: tuple[str, int], ask: Ask) -> Answer:
    try:
        answer = _converse(address, ask) if ask.method == "WEBSOCKET" else _http(address, ask)
    except TimeoutError:
        return Answer(BROKEN, {}, b"", f"nothing came for {HANGS:g} s")
    if answer.wrong or answer.status == BROKEN or ask.method == "WEBSOCKET":
        return answer
    return Answer(answer.status, answer.headers, answer.body, judged(ask, answer))


def _http(address: tuple[str, int], ask: Ask) -> Answer:
    with socket.create_connection(address, timeout=HANGS) as sock:
        try:
            sock.sendall(_bytes(ask, address))
            if ask.framing == "short":
                sock.shutdown(socket.SHUT_WR)
        except ConnectionError:
            pass  # it may answer before it has all, and close
        answer = http.client.HTTPResponse(sock, method=ask.method)
        try:
            answer.begin()
            body = answer.read()
        except (http.client.HTTPException, ConnectionError) as error:
            return Answer(BROKEN, {}, b"", "" if _may_break(ask) else f"the connection broke: {error!r}")
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)


def _bytes(ask: Ask, address: tuple[str, int]) -> bytes:
    headers = list(ask.headers)
    given = {name.lower() for name, _ in headers}
    if "host" not in given:
        headers.insert(0, ("Host", f"localhost:{address[1]}"))
    body = ask.body
    if ask.framing == "chunked":
        headers.append(("Transfer-Encoding", "chunked"))
        half = len(body) // 2
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:]) if part) + b"0\r\n\r\n"
    elif ask.framing == "wrong":
        headers.append(("Content-Length", "x"))
    elif body or ask.framing == "short" or ask.method in ("POST", "PUT", "PATCH"):
        headers.append(("Content-Length", str(len(body) + (10 if ask.framing == "short" else 0))))
    head = f"{ask.method} {ask.path} HTTP/1.1\r\n".encode()
    for name, value in headers:
        head += name.encode() + b": " + (value if isinstance(value, bytes) else value.encode("latin-1", "replace")) + b"\r\n"
    return head + b"\r\n" + body


def _may_break(ask: Ask) -> bool:
    """Who announces more than comes has left when it stops sending; what is not HTTP, and what comes with a request to close, need not
    be read to its end before the connection is closed, which may then break under the answer."""
    return ask.framing in ("short", "wrong") or ("Connection", "close") in ask.headers


def _converse(address: tuple[str, int], ask: Ask) -> Answer:
    url = f"ws://localhost:{address[1]}{ask.path}"
    messages = json.loads(ask.body)
    try:
        with connect(url, open_timeout=HANGS, close_timeout=HANGS, sock=socket.create_connection(address, timeout=HANGS)) as session:
            try:
                for message in messages:
                    session.send(message)
                while True:
                    if not isinstance(json.loads(session.recv(timeout=SESSION_SECONDS)), dict):
                        return Answer(BROKEN, {}, b"", "a message that is no object")
            except TimeoutError:
                return Answer(1000, {}, b"")
            except ValueError:
                return Answer(BROKEN, {}, b"", "a message that is not JSON")
            except websockets.ConnectionClosed as closed:
                end = closed.rcvd
                if end is None:
                    return Answer(BROKEN, {}, b"", "the session ended without a word")
                wrong = f"closed with {end.code} {end.reason!r}" if end.code == 1011 or not end.reason else ""
                return Answer(end.code, {}, end.reason.encode(), wrong)
    except websockets.InvalidStatus as refused:
        status = refused.response.status_code
        return Answer(status, {}, b"", f"refused with {status}" if status >= 500 else "")
    except (websockets.InvalidHandshake, ConnectionError, EOFError) as error:
        return Answer(BROKEN, {}, b"", f"the connection broke: {error!r}")


def judged(ask: Ask, answer: Answer) -> str:
    """What is wrong with an answer, "" if nothing is."""
    status, kind = answer.status, answer.headers.get("content-type", "")
    if status == 504 and any(name == "X-Server-Timeout" for name, _ in ask.headers):
        status = 400  # the client set a time that was too short
    if status >= 500:
        return f"answered with {answer.status}: {answer.body[:300]!r}"
    if ask.method == "HEAD" or status in (204, 304) or "content-encoding" in answer.headers:
        return ""
    if status >= 400:
        return _judged_error(ask, answer)
    try:
        if kind.startswith("text/event-stream"):
            for event in re.split(rb"\r?\n\r?\n", answer.body)[:-1]:
                data = next(line for line in event.splitlines() if line.startswith(b"data: "))[6:]
                if data != b"[DONE]" and not isinstance(json.loads(data), dict):
                    return f"an event that is no object: {data[:100]!r}"
        elif kind.startswith("application/json") and ":download" not in ask.route:
            json.loads(answer.body)
        elif not kind.startswith(PLAIN):
            return f"an answer of the type {kind!r}"
    except (ValueError, StopIteration) as error:
        return f"{kind} that cannot be read, {error!r}: {answer.body[:200]!r}"
    return ""


def _judged_error(ask: Ask, answer: Answer) -> str:
    shown = f"{answer.status} {answer.body[:300]!r}"
    try:
        error = json.loads(answer.body)["error"]
    except (ValueError, KeyError, TypeError):
        return f"an error without its form: {shown}"
    if not isinstance(error.get("message"), str) or not error["message"]:
        return f"an error without a message: {shown}"
    gemini = error.get("code") == answer.status and STATUSES.fullmatch(str(error.get("status")))
    openai = {"message", "type", "param", "code"} == set(error)
    interactions = isinstance(error.get("code"), str) and "status" not in error
    as_asked = {"gemini": gemini, "openai": openai, "interactions": interactions}[ask.form]
    # What is no HTTP has no route yet; what is refused before it reaches its route, or is bent into another one, is answered as there.
    elsewhere = answer.status in (403, 404, 405, 408) or "not HTTP" in error["message"] or b"Authorization" in _bytes(ask, ("", 0))
    foreign = elsewhere and (gemini or openai)
    return "" if as_asked or foreign else f"an error in another form than that of {ask.form}: {shown}"
