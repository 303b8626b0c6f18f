"""The HTTP server under the application: the gate before it is ready and while it drains, and connections held open for nothing."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from stored_server import until

from pollux.serve import listener as listening
from pollux.serve.errors import ApiError
from pollux.serve.gate import Gate
from pollux.serve.limits import BodyTimeout
from pollux.serve.listener import Listener
from pollux.serve.openai.errors import answer_error


@contextlib.contextmanager
def serving(gate, drain=30.0):
    """The listener on a thread; yields it and its address."""
    sock = socket.create_server(("127.0.0.1", 0))
    listener = Listener(gate, gate, drain)
    thread = threading.Thread(target=listener.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        until(lambda: listener.started)
        yield listener, sock.getsockname()
    finally:
        listener.end()
        thread.join()


def url(address, path="/"):
    return f"http://{address[0]}:{address[1]}{path}"


class Stream:
    """An application whose answer goes on until the test lets it end."""

    def __init__(self):
        self.release, self.left = threading.Event(), threading.Event()

    def app(self, chunk=b"x" * 10, times=1_000_000):
        async def chunks():
            try:
                yield b"first"
                for _ in range(times):
                    if self.release.is_set():
                        break
                    await asyncio.sleep(0.002)
                    yield chunk
            finally:
                self.left.set()

        return Starlette(routes=[Route("/", lambda request: StreamingResponse(chunks()), methods=["GET", "POST"])])


def opened(app):
    gate = Gate()
    gate.open(app, app)
    return gate


def test_before_it_is_open_the_server_lives_but_is_not_ready():
    gate, app = Gate(), Starlette(routes=[Route("/", lambda request: PlainTextResponse("hello"))])
    with serving(gate) as (_, address):
        for state in ("loading", "warming"):
            gate.state = state
            assert httpx.get(url(address, "/healthz")).status_code == 200
            ready, answer = httpx.get(url(address, "/readyz")), httpx.get(url(address))
            assert (ready.status_code, ready.json()) == (503, {"status": state, "running": 0})
            assert (answer.status_code, answer.json()["error"]["status"]) == (503, "UNAVAILABLE")
            assert int(answer.headers["retry-after"]) > 0
        gate.open(app, app)
        assert gate.opened.wait(10)
        assert httpx.get(url(address, "/readyz")).status_code == 200
        assert httpx.get(url(address)).text == "hello"


def test_the_lifespan_of_the_application_surrounds_its_requests():
    events = []

    @contextlib.asynccontextmanager
    async def lifespan(app):
        events.append("begin")
        yield
        events.append("end")

    gate, app = Gate(), Starlette(lifespan=lifespan)
    with serving(gate) as (listener, _):
        assert events == []
        gate.open(app, app)
        assert gate.opened.wait(10) and events == ["begin"]
        listener.stop()
        until(lambda: events == ["begin", "end"])


@pytest.mark.parametrize("where", ["loading", "lifespan"])
def test_what_keeps_the_application_from_starting_ends_the_listener(where):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        raise ValueError("no room")
        yield

    gate, app = Gate(), Starlette(lifespan=lifespan)
    sock = socket.create_server(("127.0.0.1", 0))
    gate.open(app, app) if where == "lifespan" else gate.fail(ValueError("no room"))
    Listener(gate, gate, 30.0).run(sockets=[sock])
    assert str(gate.error) == "no room"


def test_a_draining_server_refuses_requests_and_finishes_what_runs():
    stream = Stream()
    gate = opened(stream.app())
    with serving(gate) as (listener, address), httpx.stream("GET", url(address)) as running:
        chunks = running.iter_bytes()
        next(chunks)
        listener.stop()
        refused = httpx.get(url(address))
        assert (refused.status_code, refused.json()["error"]["status"]) == (503, "UNAVAILABLE") and "retry-after" in refused.headers
        assert httpx.get(url(address, "/readyz")).json() == {"status": "draining", "running": 1}
        next(chunks)
        stream.release.set()
        for _ in chunks:
            pass
        until(lambda: not listener.servers[0].is_serving())


def test_a_drain_that_takes_too_long_is_cut_off(monkeypatch):
    monkeypatch.setattr(listening, "CLOSING_SECONDS", 0)
    stream = Stream()
    with serving(opened(stream.app()), drain=0.2) as (listener, address), httpx.stream("GET", url(address)) as running:
        chunks = running.iter_bytes()
        next(chunks)
        listener.stop()
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in chunks:
                pass
    assert stream.left.is_set()


def sent(address, data):
    sock = socket.create_connection(address)
    sock.settimeout(30)
    sock.sendall(data)
    return sock


def is_cut_off(sock):
    """Waits for the end of a connection."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"])
@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_a_connection_without_a_whole_head_of_a_request_is_cut_off(monkeypatch, before, data):
    monkeypatch.setattr(listening, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(listening, "IDLE_SECONDS", 1)
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("hello"))])
    with serving(opened(app)) as (_, address), sent(address, before) as sock:
        received = b""
        while before and not received.endswith(b"hello"):
            received += sock.recv(1 << 16)
        sock.sendall(data)
        assert is_cut_off(sock)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 the hello of TLS\r\n\r\n",
    ],
)
def test_what_is_not_http_is_answered_in_json(data):
    async def echo(request):
        return PlainTextResponse(await request.body())

    with serving(opened(Starlette(routes=[Route("/", echo, methods=["POST"])]))) as (_, address), sent(address, data) as sock:
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        error = json.loads(answer.read())["error"]
        assert (answer.status, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT") and "not HTTP" in error["message"]


def test_only_a_get_below_ws_begins_a_websocket_and_others_are_answered():
    async def echo(request):
        return PlainTextResponse(await request.body() or b"none")

    head = {"Connection": "upgrade", "Upgrade": "websocket"}
    with serving(opened(Starlette(routes=[Route("/", echo, methods=["GET", "POST"])]))) as (_, address):
        assert httpx.post(url(address), headers=head, content=b"a text").text == "a text"
        assert httpx.get(url(address), headers=head).text == "none"


def test_what_is_not_http_behind_an_answer_that_has_begun_ends_the_connection():
    stream, head = Stream(), b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving(opened(stream.app())) as (_, address), sent(address, head) as sock:
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert answer.read(5) == b"first"
        sock.sendall(b"no number\r\n")
        assert is_cut_off(sock)
    assert stream.left.wait(30)


def test_a_request_that_takes_longer_than_its_head_may_is_answered(monkeypatch):
    monkeypatch.setattr(listening, "HEAD_SECONDS", 0.1)

    async def slow(request):
        await asyncio.sleep(0.4)
        return PlainTextResponse("hello")

    with serving(opened(Starlette(routes=[Route("/", slow)]))) as (_, address), httpx.Client() as client:
        assert [client.get(url(address), timeout=30).text for _ in range(2)] == ["hello"] * 2


def test_a_reader_that_stops_reading_is_cut_off_and_its_answer_ends(monkeypatch):
    monkeypatch.setattr(listening, "READER_SECONDS", 0.2)
    stream = Stream()
    with serving(opened(stream.app(chunk=b"x" * (1 << 20)))) as (_, address):
        with sent(address, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            assert stream.left.wait(30)


def test_a_slow_reader_is_given_its_time(monkeypatch):
    monkeypatch.setattr(listening, "READER_SECONDS", 5.0)
    size = 1 << 20
    with serving(opened(Stream().app(chunk=b"x" * size, times=8))) as (_, address):
        with sent(address, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") as sock:
            received = 0
            while chunk := sock.recv(1 << 20):
                received += len(chunk)
    assert received > 8 * size


def test_a_body_that_stops_coming_is_answered_with_408():
    async def echo(request):
        return PlainTextResponse(await request.body())

    app = Starlette(routes=[Route("/", echo, methods=["POST"])], exception_handlers={ApiError: answer_error})
    gate = Gate()
    gate.open(BodyTimeout(app, seconds=0.2), app)
    with serving(gate) as (_, address):
        with sent(address, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf") as sock:
            head, _, body = sock.recv(1 << 16).partition(b"\r\n\r\n")
            while len(body) < 10:
                body += sock.recv(1 << 16)
        assert b" 408 " in head.splitlines()[0] and json.loads(body)["error"]["status"] == "DEADLINE_EXCEEDED"
        assert httpx.post(url(address), content=b"whole").text == "whole"
