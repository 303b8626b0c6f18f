"""The half of client_tests.py that runs inside pytest, in the environment of the official client; it needs nothing of pollux.

It takes the place of the network: requests for Google's Gemini hosts go to the server in CLIENT_TESTS_SERVER, and for each test the
requests that left through a transport (httpx, httpx2, websockets) are counted, whatever the test thinks of them. Variants for Vertex are
left out, since they never go to a Gemini endpoint; ids of the authors' account are replaced (client_named.py). One line of JSON per
test goes to the file CLIENT_TESTS_REPORT.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
from typing import Any
from urllib.parse import urlsplit

import pytest
from client_named import Named

SERVER = urlsplit(os.environ["CLIENT_TESTS_SERVER"])
REPORT = os.environ["CLIENT_TESTS_REPORT"]
SECONDS = float(os.environ["CLIENT_TESTS_SECONDS"])
GEMINI_HOSTS = re.compile(r"(autopush-)?generativelanguage(\.sandbox)?\.googleapis\.com")
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")

NAMED = Named(SERVER.geturl())
sent = 0  # requests of the running test that went to the server


class Elsewhere(Exception):
    """A request that would leave this machine."""


def _count(host: str | None, port: int | None) -> bool:
    """Count a request if it is for the server; whether it must be sent there instead of `host`."""
    global sent
    ours = host == SERVER.hostname and port == SERVER.port
    gemini = bool(host and GEMINI_HOSTS.fullmatch(host))
    if ours or gemini:
        sent += 1
    elif host not in LOCAL_HOSTS:
        raise Elsewhere(f"this request goes to {host}, not to a Gemini endpoint")
    return gemini


def _redirect_http(library: Any) -> None:
    """Let the transports of httpx or httpx2 count and redirect."""

    def redirected(request: Any) -> Any:
        if _count(request.url.host, request.url.port):
            request.url = request.url.copy_with(scheme=SERVER.scheme, host=SERVER.hostname, port=SERVER.port)
            request.headers["host"] = SERVER.netloc
        if (path := NAMED.path(request.url.path)) != request.url.path:
            request.url = request.url.copy_with(path=path)
        if b'"fileSearchStores/' in (body := _body(request)) and (replaced := NAMED.path(body.decode()).encode()) != body:
            headers = {name: value for name, value in request.headers.items() if name != "content-length"}
            request = library.Request(request.method, request.url, headers=headers, content=replaced, extensions=request.extensions)
        return request

    send, send_async = library.HTTPTransport.handle_request, library.AsyncHTTPTransport.handle_async_request
    library.HTTPTransport.handle_request = lambda self, request: send(self, redirected(request))
    library.AsyncHTTPTransport.handle_async_request = lambda self, request: send_async(self, redirected(request))


def _body(request: Any) -> bytes:
    """What a request sends, if that is at hand."""
    return request.content if hasattr(request, "_content") else b""


def _redirect_websockets(live: Any) -> None:
    """Let the live module's connections count and redirect."""
    connect = live.ws_connect

    def redirected(uri: str, **keywords: Any) -> Any:
        parts = urlsplit(uri)
        if _count(parts.hostname, parts.port):
            uri = parts._replace(scheme="wss" if SERVER.scheme == "https" else "ws", netloc=SERVER.netloc).geturl()
            if SERVER.scheme == "http":
                keywords.pop("ssl", None)
        return connect(uri, **keywords)

    live.ws_connect = redirected


def pytest_configure(config: pytest.Config) -> None:
    for name in ("httpx", "httpx2"):
        try:
            _redirect_http(importlib.import_module(name))
        except ModuleNotFoundError:
            continue  # a version of the client has one or the other
    _redirect_websockets(importlib.import_module("google.genai.live"))
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"no end after {SECONDS:g} seconds", pytrace=False))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        arguments = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        (left_out if arguments.get("use_vertex") else kept).append(item)
        reason = _own_skip(item)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


def _own_skip(item: pytest.Item) -> str:
    """Why a row of a test table says of itself that it does not work against a server; not every version of the client heeds it."""
    rows = getattr(getattr(item, "module", None), "test_table", [])
    row = next((row for row in rows if row.name == getattr(item, "originalname", "")), None)
    return getattr(row, "skip_in_api_mode", None) or ""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    global sent
    sent = 0
    NAMED.renew()
    item.stash[_REPORTS] = []
    yield
    _write(_name(item.nodeid), item.stash[_REPORTS])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Any:
    outcome = yield
    item.stash[_REPORTS].append((outcome.get_result().outcome, _reason(call)))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        with open(REPORT, "a") as file:
            lines = str(report.longrepr).strip().splitlines()
            print(json.dumps({"test": _name(report.nodeid), "sent": 0, "outcome": "broken", "reason": lines[-1]}), file=file)


_REPORTS = pytest.StashKey[list[tuple[str, str]]]()


def _name(nodeid: str) -> str:
    """The node's id below the folder of tests, without its parameters."""
    return re.sub(r"\[.*", "", nodeid.removeprefix("tests/"))


def _write(name: str, reports: list[tuple[str, str]]) -> None:
    outcomes = [outcome for outcome, _ in reports]
    outcome = next((word for word in ("failed", "skipped") if word in outcomes), "passed")
    reason = next((text for word, text in reports if word == outcome and text), "")
    with open(REPORT, "a") as file:
        print(json.dumps({"test": name, "sent": sent, "outcome": outcome, "reason": reason}), file=file)


def _reason(call: pytest.CallInfo) -> str:
    """One line: the error, and for an assertion the line that made it."""
    if call.excinfo is None:
        return ""
    error = call.excinfo.value
    text = " ".join(str(error).split())
    message = re.search(r"""['"]message['"]: (['"])(.*?)\1, ['"](status|code)""", text)
    if message:
        text = f"{text.split('{')[0]}{message[2]}"
    if isinstance(error, AssertionError):
        frame = next((entry for entry in reversed(call.excinfo.traceback) if "genai/tests/" in str(entry.path)), None)
        text = " ".join(str(frame.statement).split()) + (f"  [{text[:120]}]" if text else "") if frame else text
    return f"{type(error).__name__}: {text}"[:300]
