"""What happens to servers: clients that leave or do not read, far too many of them, damaged media, a full disk, a sudden end. The uploads
of a server that is killed and whose disk is full are in test_store.py, a drain with live sessions is in test_live_session.py."""

import asyncio
import base64
import collections
import contextlib
import json
import os
import socket
import urllib.parse

import httpx
import pytest
from fuzzing.run import Target
from fuzzing.values import media
from small_model import LIMIT
from small_program import serving as program
from stored_server import until
from websockets.sync.client import connect
from whole_server import serving

from pollux.serve import listener
from pollux.serve.caches import release_ended
from pollux.serve.databases import Database
from pollux.serve.errors import disk_full

SAID = {"contents": [{"role": "user", "parts": [{"text": "a red circle"}]}]}
LONG = SAID | {"generationConfig": {"maxOutputTokens": LIMIT - 60, "temperature": 0, "candidateCount": 4}}
SHORT = SAID | {"generationConfig": {"maxOutputTokens": 4, "temperature": 0}}
MODEL = "/v1beta/models/pollux"
LIVE = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
CHAT = {"model": "pollux", "messages": [{"role": "user", "content": "a red circle"}], "max_tokens": LIMIT - 60, "n": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("data")) as running:
        yield running


def engine(whole):
    return whole.service.server.find("pollux").engine


def idle(whole):
    """Whether nothing runs and nothing is held."""
    stats = engine(whole).stats()
    return not (stats.waiting or stats.rows or stats.pages_used or whole.service.gate.running)


def cancelled(whole):
    return whole.service.metrics.jobs.labels("small", "cancelled")._value.get()


def post(whole, path, body, **options):
    return httpx.post(whole.url + path, json=body, timeout=300, **options)


# Clients that leave.


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"{MODEL}:streamGenerateContent?alt=sse", LONG),
        (f"{MODEL}:streamGenerateContent", LONG),
        ("/v1/chat/completions", CHAT | {"stream": True}),
        ("/v1/interactions", {"model": "pollux", "input": "a", "stream": True, "generation_config": {"max_output_tokens": LIMIT - 60}}),
    ],
)
def test_who_leaves_a_stream_frees_its_rows_and_pages(whole, path, body):
    before = cancelled(whole)
    with httpx.stream("POST", whole.url + path, json=body, timeout=300) as stream:
        next(stream.iter_bytes())
    until(lambda: idle(whole))
    assert cancelled(whole) == before + 1


@pytest.mark.parametrize("path", [f"{MODEL}:generateContent", "/v1/chat/completions"])
def test_who_leaves_before_the_answer_frees_its_rows_and_pages(whole, path):
    before = cancelled(whole)
    address = urllib.parse.urlsplit(whole.url)
    body = json.dumps(CHAT if "chat" in path else LONG).encode()
    with socket.create_connection((address.hostname, address.port)) as sock:
        sock.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: engine(whole).stats().rows)
    until(lambda: idle(whole))
    assert cancelled(whole) == before + 1


# Clients that do not read.


def test_readers_that_never_read_stop_nobody_and_are_cut_off(whole, monkeypatch):
    monkeypatch.setattr(listener, "READER_SECONDS", 1.0)
    address = urllib.parse.urlsplit(whole.url)
    body = json.dumps(
        SAID | {"generationConfig": {"maxOutputTokens": LIMIT - 60, "candidateCount": 8, "responseLogprobs": True, "logprobs": 20}}
    ).encode()
    with contextlib.ExitStack() as opened:
        readers = [opened.enter_context(socket.socket()) for _ in range(2)]
        for reader in readers:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect((address.hostname, address.port))
            head = f"POST {MODEL}:streamGenerateContent?alt=sse HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            reader.sendall(head.encode() + body)
        until(lambda: engine(whole).stats().rows)
        assert post(whole, f"{MODEL}:generateContent", SHORT).status_code == 200
        until(lambda: idle(whole))
        for reader in readers:
            received = b""
            with contextlib.suppress(ConnectionError):
                while data := reader.recv(1 << 20):
                    received += data
            assert received.startswith(b"HTTP/1.1 200") and not received.endswith(b"0\r\n\r\n")  # it lacks its end


# Media that are damaged.


def damaged(data):
    """What becomes of a file on a bad way, by name."""
    middle = len(data) // 2
    return {
        "empty": b"",
        "head alone": data[:10],
        "cut": data[: middle + 7],
        "zeros": data[:middle] + bytes(len(data) - middle),
        "head gone": data[8:],
        "flipped": bytes(byte ^ 0x55 if i % 3 == 0 else byte for i, byte in enumerate(data)),
        "another kind": b"%PDF-1.7 \xff\xfe",
    }


@pytest.mark.parametrize("mime", sorted(media()))
def test_damaged_media_are_the_clients_mistake_or_are_read_as_far_as_they_go(whole, mime):
    refused = []
    for name, data in damaged(media()[mime]).items():
        part = {"inlineData": {"mimeType": mime, "data": base64.b64encode(data).decode()}}
        content = {"role": "user", "parts": [part, {"text": "a"}]}
        answer = post(whole, f"{MODEL}:generateContent", SHORT | {"contents": [content]})
        assert answer.status_code in (200, 400), (name, answer.text)
        if answer.status_code == 400:
            error = answer.json()["error"]
            assert error["status"] == "INVALID_ARGUMENT" and len(error["message"].split()) > 3, name
            refused.append(name)
        embedded = post(whole, f"{MODEL}:embedContent", {"content": content})
        assert embedded.status_code == answer.status_code, (name, embedded.text)
    assert {"empty", "another kind"} <= set(refused) and (mime == "text/plain" or {"head alone", "head gone", "flipped"} <= set(refused))
    until(lambda: idle(whole))


# A cache whose time is over.


def test_an_answer_goes_on_when_the_cached_content_that_it_began_with_expires(whole):
    cache = post(whole, "/v1beta/cachedContents", {"model": "pollux", "ttl": "600s"} | {"contents": SAID["contents"] * 6}).json()
    assert engine(whole).stats().pages_used > 0
    asked = LONG | {"cachedContent": cache["name"]}
    with httpx.stream("POST", f"{whole.url}{MODEL}:streamGenerateContent?alt=sse", json=asked, timeout=300) as stream:
        lines = (line for line in stream.iter_lines() if line)
        chunks = [next(lines)]
        store = whole.service.store
        store.records.update(store.records.get("cache", cache["name"].partition("/")[2]), {}, expires=store.clock() - 1)
        release_ended(whole.service.server)
        chunks += lines
    ends = [c["finishReason"] for chunk in chunks for c in json.loads(chunk[6:])["candidates"] if "finishReason" in c]
    assert len(ends) == 4
    late = post(whole, f"{MODEL}:generateContent", asked)
    assert (late.status_code, late.json()["error"]["status"]) == (403, "PERMISSION_DENIED")
    until(lambda: idle(whole))


# A full disk.


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1beta/cachedContents", {"model": "pollux", "contents": SAID["contents"] * 6}),
        (f"{MODEL}:batchGenerateContent", {"batch": {"inputConfig": {"requests": {"requests": [{"request": SHORT}]}}}}),
        ("/v1beta/interactions", {"model": "pollux", "input": "a red", "generation_config": {"max_output_tokens": 4}}),
        ("/v1beta/auth_tokens", {}),
    ],
)
def test_what_cannot_be_stored_is_not_acknowledged_and_holds_nothing(whole, monkeypatch, path, body):
    real = Database.execute

    def full(self, statement, values=None):
        if statement.is_insert:
            raise disk_full()
        return real(self, statement, values)

    monkeypatch.setattr(Database, "execute", full)
    answer = post(whole, path, body)
    assert answer.status_code == 507 and "disk of the server is full" in answer.json()["error"]["message"]
    assert post(whole, f"{MODEL}:generateContent", SHORT).status_code == 200
    until(lambda: idle(whole))
    monkeypatch.undo()
    made = post(whole, path, body)
    assert made.status_code == 200
    if "cachedContents" in path:
        assert httpx.delete(f"{whole.url}/v1beta/{made.json()['name']}", timeout=60).status_code == 200
    until(lambda: idle(whole))


# Far too many.


async def ask(address, path, body):
    """Status and JSON of an answer."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        method, data = ("GET", b"") if body is None else ("POST", json.dumps(body).encode())
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        answer = await reader.read()
    finally:
        writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


def memory(pid):
    """Bytes of a process."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_ten_thousand_requests_at_once_are_answered_or_told_to_come_again():
    """The queue holds 1,024; the server says that it lives all the while, and does not keep what it refused."""
    body = SAID | {"generationConfig": {"maxOutputTokens": 60, "temperature": 0}}

    async def flood(address, pid):
        before, most, healthy = memory(pid), 0, 0
        asking = [asyncio.create_task(ask(address, f"{MODEL}:generateContent", body)) for _ in range(10_000)]
        while not all(task.done() for task in asking):
            status, _ = await ask(address, "/healthz", None)
            assert status == 200
            healthy, most = healthy + 1, max(most, memory(pid))
            await asyncio.sleep(0.1)
        return [task.result() for task in asking], most - before, healthy

    with program() as (port, process):
        answers, grown, healthy = asyncio.run(flood(("127.0.0.1", port), process.pid))
        statuses = collections.Counter(status for status, _ in answers)
        print(f"{dict(statuses)}, {grown >> 20} MiB more, {healthy} x healthy")
        assert set(statuses) == {200, 429} and statuses[200] >= 1024
        assert {answer["error"]["status"] for status, answer in answers if status == 429} == {"RESOURCE_EXHAUSTED"}
        whole_answers = {answer["candidates"][0]["content"]["parts"][0]["text"] for status, answer in answers if status == 200}
        assert len(whole_answers) == 1
        assert grown < 1 << 30 and healthy > 3
        assert not Target(port, process.pid).settled().busy


# A sudden end.


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_of_everything_loses_nothing_that_it_acknowledged(tmp_path):
    """Killed during a stream, a live session, a batch, uploads and writes of caches and interactions, all at once."""
    picture = media()["image/png"]
    cache = {"model": "pollux", "contents": SAID["contents"] * 6, "ttl": "3600s"}
    requests = [{"request": SHORT, "metadata": {"key": str(i)}} for i in range(300)]
    said = {"model": "pollux", "input": "a red", "generation_config": {"max_output_tokens": 4}}
    made = collections.defaultdict(list)  # what was acknowledged

    async def hammer(client, path, kind, **options):
        with contextlib.suppress(httpx.TransportError):
            while True:
                answer = await client.post(path, **options)
                assert answer.status_code == 200, answer.text
                made[kind].append(answer.json())

    async def stream(client):
        with contextlib.suppress(httpx.TransportError):
            while True:
                async with client.stream("POST", f"{MODEL}:streamGenerateContent?alt=sse", json=LONG) as answer:
                    async for line in answer.aiter_lines():
                        made["chunks"].append(line)

    async def everything(url, process):
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            batch = {"batch": {"inputConfig": {"requests": {"requests": requests}}}}
            made["batches"].append((await client.post(f"{MODEL}:batchGenerateContent", json=batch)).json())
            raw = {"X-Goog-Upload-Protocol": "raw", "Content-Type": "image/png"}
            tasks = [
                asyncio.create_task(hammer(client, "/v1beta/cachedContents", "caches", json=cache)),
                asyncio.create_task(hammer(client, "/upload/v1beta/files", "files", content=picture, headers=raw)),
                asyncio.create_task(hammer(client, "/v1beta/interactions", "interactions", json=said)),
                asyncio.create_task(stream(client)),
            ]
            while min(len(made[kind]) for kind in ("caches", "files", "interactions", "chunks")) < 5:
                await asyncio.sleep(0.01)
                assert process.poll() is None
            process.kill()
            await asyncio.gather(*tasks)

    with program(tmp_path, "--cold") as (port, process):
        with connect(f"ws://127.0.0.1:{port}{LIVE}") as live:
            live.send(json.dumps({"setup": {"model": "pollux", "generationConfig": {"maxOutputTokens": 400}}}))
            live.send(json.dumps({"realtimeInput": {"text": "a"}}))
            assert "setupComplete" in json.loads(live.recv())
            asyncio.run(everything(f"http://127.0.0.1:{port}", process))
    with program(tmp_path, "--cold") as (port, _), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
        for one in made["caches"]:
            assert client.get(f"/v1beta/{one['name']}").json() == one
        assert client.post(f"{MODEL}:generateContent", json=SHORT | {"cachedContent": made["caches"][-1]["name"]}).status_code == 200
        for one in made["files"]:
            assert client.get(f"/v1beta/{one['file']['name']}:download").content == picture
        for one in made["interactions"]:
            assert client.get(f"/v1beta/interactions/{one['id']}").json()["steps"] == one["steps"]
        name = made["batches"][0]["name"]
        until(lambda: client.get(f"/v1beta/{name}").json()["done"])
        done = client.get(f"/v1beta/{name}").json()["response"]["inlinedResponses"]["inlinedResponses"]
        assert [one["metadata"]["key"] for one in done] == [str(i) for i in range(300)] and all("response" in one for one in done)
        until(lambda: not list((tmp_path / "uploads").iterdir()))  # nothing stays of the upload that was cut off
