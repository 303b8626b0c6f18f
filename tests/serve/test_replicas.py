"""Several servers with one database and one object store: what one of them keeps, the others find; what one leaves undone, they do."""

import contextlib
import functools
import io
import re
import threading

import httpx
import pytest
import replica
from google import genai
from google.genai import types
from small_model import small_model
from stored_server import Clock, program, serving, until
from test_batches import TEXTS, create, ended, inline, request, responses, texts
from watched_engine import WatchedEngine

from pollux.serve.allowances import Allowances
from pollux.serve.errors import ApiError
from pollux.serve.keys import Keys
from pollux.serve.limits import LimitExceeded, Limits
from pollux.serve.live import tokens
from pollux.serve.server import Served
from pollux.serve.store import Store
from pollux.serve.wire.live import AuthToken


@pytest.fixture
def shared(database, tmp_path):
    """What the servers share."""
    url = database if "://" in database else f"sqlite:///{database}"
    return {"database": url, "objects": f"file://{tmp_path}/objects", "lease": replica.LEASE}


@pytest.fixture
def pair(tmp_path, shared, real_engine):
    """Two servers and their engines."""
    engines = WatchedEngine(real_engine), WatchedEngine(real_engine)
    here, there = ({"small": Served("small", small_model(), engine)} for engine in engines)
    with serving(tmp_path / "here", here, **shared) as one, serving(tmp_path / "there", there, **shared) as other:
        yield one, other, *engines


@functools.cache  # a client that nobody has any more closes itself, whatever was got from it
def client_of(running):
    return genai.Client(api_key="any", http_options={"base_url": running.url})


def objects(tmp_path):
    return sorted(file.name for file in (tmp_path / "objects").iterdir())


def test_files_of_one_server_are_read_and_deleted_at_the_other(pair, tmp_path):
    one, other, *_ = pair
    file = client_of(one).files.upload(file=io.BytesIO(b"a text"), config={"mime_type": "text/plain"})
    assert [found.name for found in client_of(other).files.list()] == [file.name]
    assert httpx.get(f"{other.url}/v1beta/{file.name}:download", timeout=60).content == b"a text"
    assert len(objects(tmp_path)) == 1
    client_of(other).files.delete(name=file.name)
    assert not list(client_of(one).files.list()) and not objects(tmp_path)


def test_an_upload_goes_on_only_at_the_server_that_has_its_bytes_and_its_file_is_everywhere(pair):
    one, other, *_ = pair
    headers = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start", "X-Goog-Upload-Header-Content-Type": "text/plain"}
    place = httpx.post(f"{one.url}/upload/v1beta/files", headers=headers, json={}, timeout=60).headers["x-goog-upload-url"]
    elsewhere = place.replace(one.url, other.url)
    finalize = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "0"}
    refused = httpx.post(elsewhere, headers=finalize, content=b"a text", timeout=60)
    assert (refused.status_code, refused.json()["error"]["details"][0]["reason"]) == (421, "UPLOAD_ELSEWHERE")
    other.store.sweep()
    file = httpx.post(place, headers=finalize, content=b"a text", timeout=60).json()["file"]
    again = httpx.post(elsewhere, headers=finalize, timeout=60)
    assert (again.status_code, again.json()["file"]["name"]) == (200, file["name"])


def test_a_cached_beginning_of_one_server_is_read_once_by_the_other(pair):
    one, other, engine, elsewhere = pair
    text = " ".join(TEXTS * 12)
    cache = client_of(one).caches.create(model="small", config={"contents": [text], "ttl": "600s"})
    config = types.GenerateContentConfig(cached_content=cache.name, max_output_tokens=4, temperature=0)
    answers = [client_of(which).models.generate_content(model="small", contents="and?", config=config) for which in (one, other, other)]
    assert len({answer.text for answer in answers}) == 1
    assert all(answer.usage_metadata.cached_content_token_count > 32 for answer in answers)
    assert len(engine.held) == 1 and len(elsewhere.held) == 1
    client_of(one).caches.delete(name=cache.name)
    with pytest.raises(genai.errors.ClientError, match="403"):
        client_of(other).models.generate_content(model="small", contents="and?", config=config)


def test_a_key_and_a_token_count_for_all_servers(pair):
    one, other, *_ = pair
    keys = Keys(one.store.records), Keys(other.store.records)
    key = keys[0].add("me", requests_per_minute=7)
    assert keys[1].find(key) == keys[0].find(key) and keys[1].find(key).requests_per_minute == 7
    keys[1].remove("me")
    assert keys[0].find(key) is None
    name = tokens._add(one.server, AuthToken(uses=1), "me")
    assert tokens.admit(other.server, name).owner == "me"
    with pytest.raises(ApiError, match="was used as often"):
        tokens.admit(one.server, name)


def test_allowances_are_counted_together_and_refill_as_at_one_server(shared, tmp_path):
    clock = Clock()
    clock.frozen = clock()
    stores = [Store(tmp_path / str(i), clock, **shared) for i in range(2)]
    limits = [Limits(clock) for _ in stores]
    servers = [Allowances(limit, store.records) for limit, store in zip(limits, stores, strict=True)]

    def admitted(which: int, number: int) -> int:
        done = 0
        for _ in range(number):
            with contextlib.suppress(LimitExceeded):
                limits[which].admit("me", 60, 1000)
                done += 1
        return done

    def exchange():
        for server in (*servers, servers[0]):
            server.exchange()

    assert admitted(0, 40) == 40 and admitted(1, 10) == 10
    limits[0].charge("me", 300)
    limits[1].charge("me", 300)
    exchange()
    assert admitted(1, 20) == admitted(0, 20) == 10  # before they hear of each other again
    exchange()
    assert admitted(0, 5) == admitted(1, 5) == 0
    clock.frozen += 40
    exchange()
    assert admitted(1, 60) == 60 - (70 - 40)  # both together had used 70
    limits[1].charge("me", 1100)
    exchange()
    with pytest.raises(LimitExceeded, match="1000 tokens a minute"):
        limits[0].check_tokens("me")
    for store in stores:
        store.close()


def test_an_interaction_goes_on_at_any_server_and_is_followed_and_cancelled_from_the_other(pair):
    one, other, engine, _ = pair

    def ask(running, **more):
        body = {"model": "small", "input": "a red circle", "generation_config": {"max_output_tokens": 4}} | more
        return httpx.post(f"{running.url}/v1beta/interactions", json=body, timeout=60).json()

    first = ask(one)
    assert ask(other, previous_interaction_id=first["id"])["status"] in ("completed", "incomplete")
    engine.answers = 0
    running = ask(one, background=True)
    place = f"{other.url}/v1beta/interactions/{running['id']}"
    until(lambda: engine.silent)
    assert httpx.get(place, timeout=60).json()["status"] == "in_progress"
    assert httpx.post(f"{place}/cancel", timeout=60).json()["status"] == "cancelled"
    assert httpx.get(place.replace(other.url, one.url), timeout=60).json()["status"] == "cancelled"
    assert engine.silent[0].cancelled
    running = ask(one, background=True)
    place = f"{other.url}/v1beta/interactions/{running['id']}"
    events = []
    follower = threading.Thread(target=lambda: events.append(httpx.get(f"{place}?stream=true", timeout=120).text))
    follower.start()
    httpx.post(f"{one.url}/v1beta/interactions/{running['id']}/cancel", timeout=60)
    follower.join()
    assert '"status": "cancelled"' in events[0] and "event: done" in events[0]


def test_sweeps_of_all_servers_at_once_take_away_what_has_expired_and_nothing_else(tmp_path, shared):
    stores = [Store(tmp_path / str(i), **shared) for i in range(3)]
    now = stores[0].clock()
    for i in range(12):
        name = f"medium{i}"
        stores[0].write(name, 0, b"bytes")
        stores[0].sync(name)
        stores[0].keep(name)
        stores[0].discard(name)
        stores[0].records.add("file", f"a{i}", {}, expires=now + (-1 if i % 2 else 1000), media=name, size=5)
    failed = []

    def sweep(store):
        try:
            for _ in range(3):
                store.sweep()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=sweep, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert objects(tmp_path) == sorted(f"medium{i}" for i in range(0, 12, 2)) and not stores[1].records.dropped()
    for store in stores:
        store.close()


def test_a_batch_is_one_servers_until_that_is_killed_and_then_the_others_who_asks_nothing_twice(tmp_path, shared, real_engine):
    requests = [request(f"{text} {i}") for i in range(4) for text in TEXTS]
    engine = WatchedEngine(real_engine)
    models = {"small": Served("small", small_model(), engine)}
    arguments = [shared["database"], shared["objects"], "5"]
    with (
        serving(tmp_path / "here", models, **shared) as here,
        program(tmp_path / "there", file=replica.__file__, arguments=arguments) as (process, there),
        httpx.Client(base_url=here.url, timeout=60) as http,
    ):
        with httpx.Client(base_url=there, timeout=60) as elsewhere:
            name = create(elsewhere, inline(*({"request": one} for one in requests)))
        until(lambda: http.get(f"/v1beta/{name}").json()["metadata"]["batchStats"].get("successfulRequestCount") == "5")
        ended(http, create(http, inline({"request": request("mine")})))  # the server here has looked for work
        assert len(engine.requests) == 1
        process.kill()
        process.wait()
        done = ended(http, name)
        assert done["metadata"]["batchStats"] == {"requestCount": "12", "successfulRequestCount": "12"}
        assert len(engine.requests) == 1 + 7
        alone = [http.post("/v1beta/models/small:generateContent", json=one).json() for one in requests]
        assert texts(responses(done)) == [one["candidates"][0]["content"]["parts"][0]["text"] for one in alone]


def test_a_shared_database_needs_a_shared_object_store(tmp_path, shared):
    with pytest.raises(ValueError, match=re.escape("need an object store for their files too")):
        Store(tmp_path / "here", database=shared["database"])
