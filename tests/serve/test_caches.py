"""Cached contents over a real socket, by the official client and by plain HTTP."""

import datetime
import io

import numpy as np
import pytest
from google import genai
from google.genai import types
from small_model import small_model
from stored_server import error_of, serving
from watched_engine import WatchedEngine

from pollux.generate.memory import PAGE
from pollux.media import encode_image
from pollux.serve.caches import release_ended
from pollux.serve.prepare import prepare
from pollux.serve.server import Served, Settings
from pollux.serve.wire.content import Content, Part
from pollux.serve.wire.generate import GenerateContentRequest
from pollux.tokens.interleave import count

SYSTEM, FIRST = "the star is blue", "a big red circle is left of the small blue star"
PNG = encode_image(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def models(real_engine):
    return {"small": Served("small", small_model(), WatchedEngine(real_engine)), "other": Served("other", small_model(), real_engine)}


@pytest.fixture(scope="module")
def server(tmp_path_factory, models):
    with serving(tmp_path_factory.mktemp("store"), models) as running:
        yield running


@pytest.fixture
def served(models):
    """The models, with an engine that has seen nothing yet."""
    models["small"].engine.renew()
    return models


@pytest.fixture
def running(server, served):
    """The server, which forgets what a test made."""
    yield server
    server.clock.ahead = 0.0
    for kind in ("cache", "file"):
        for record in server.store.records.all(kind):
            server.store.delete(record)
    release_ended(server.server)


def create(client, **config):
    config = {"system_instruction": SYSTEM, "contents": [types.Content(role="user", parts=[types.Part(text=FIRST)])]} | config
    return client.caches.create(model="small", config=config)


def ask(client, **config):
    config = {"temperature": 0, "max_output_tokens": 8} | config
    return client.models.generate_content(model="small", contents="what colour is the circle?", config=config)


def test_a_request_with_cached_content_is_answered_as_if_it_had_said_it_all(client, served):
    cache = create(client)
    answer = ask(client, cached_content=cache.name)
    whole = [types.Content(role="user", parts=[types.Part(text=text)]) for text in (FIRST, "what colour is the circle?")]
    config = {"temperature": 0, "max_output_tokens": 8, "system_instruction": SYSTEM}
    expected = client.models.generate_content(model="small", contents=whole, config=config)
    assert answer.text == expected.text
    assert answer.usage_metadata.prompt_token_count == expected.usage_metadata.prompt_token_count
    [with_cache, without] = served["small"].engine.requests
    np.testing.assert_array_equal(with_cache.prompt.ids, without.prompt.ids)


def test_a_cache_takes_of_the_room_of_its_owner(tmp_path, served):
    with serving(tmp_path, served, Settings(max_storage=1000)) as running:
        client = genai.Client(api_key="any", http_options={"base_url": running.url})
        cache = create(client)
        with pytest.raises(genai.errors.ClientError, match="429.*more than the limit of 1000 bytes"):
            create(client, contents=[FIRST * 20])
        assert len(served["small"].engine.held) == 1
        client.caches.delete(name=cache.name)
        assert running.store.records.used("") == 0


def test_what_is_held_and_counted_is_what_every_such_prompt_begins_with(client, served):
    client.files.upload(file=io.BytesIO(PNG), config={"mime_type": "image/png", "name": "picture"})
    picture = types.Part(file_data=types.FileData(file_uri="files/picture", mime_type="image/png"))
    cache = create(client, contents=[types.Content(role="user", parts=[picture, types.Part(text=FIRST)])])
    ask(client, cached_content=cache.name)
    [held], [request] = served["small"].engine.held, served["small"].engine.requests
    size = len(held.prompt)
    assert cache.usage_metadata.total_token_count == size == sum(count(held.prompt).values())
    np.testing.assert_array_equal(request.prompt.ids[:size], held.prompt.ids)
    np.testing.assert_array_equal(request.prompt.soft["image"].features, held.prompt.soft["image"].features)
    turn = small_model().prompt("what colour is the circle?")
    assert len(request.prompt) - size == len(turn) - 1  # all but <bos>


def test_the_answer_says_how_much_was_not_read_again(client):
    cache = create(client, contents=[types.Content(role="user", parts=[types.Part(text=FIRST * 5)])])
    held = cache.usage_metadata.total_token_count // PAGE * PAGE
    assert held > 0 and ask(client, cached_content=cache.name).usage_metadata.cached_content_token_count == held


def test_an_engine_without_room_refuses_new_content_but_answers_with_the_old(tmp_path, served):
    engine = served["small"].engine
    with serving(tmp_path, served) as running:
        client = genai.Client(api_key="any", http_options={"base_url": running.url})
        cache = create(client)
        answer = ask(client, cached_content=cache.name)
        engine.cramped = True
        with pytest.raises(genai.errors.ClientError, match="429 RESOURCE_EXHAUSTED"):
            create(client)
        assert [one.name for one in client.caches.list()] == [cache.name]
    with serving(tmp_path, served) as running:
        client = genai.Client(api_key="any", http_options={"base_url": running.url})
        assert ask(client, cached_content=cache.name).text == answer.text


def test_cached_content_outlives_its_files_and_a_restart(tmp_path, served):
    with serving(tmp_path, served) as running:
        client = genai.Client(api_key="any", http_options={"base_url": running.url})
        file = client.files.upload(file=io.BytesIO(PNG), config={"mime_type": "image/png"})
        cache = create(client, contents=[file, FIRST])
        answer = ask(client, cached_content=cache.name)
        client.files.delete(name=file.name)
        assert ask(client, cached_content=cache.name).text == answer.text
    served["small"].engine.held.clear()
    with serving(tmp_path, served) as running:
        client = genai.Client(api_key="any", http_options={"base_url": running.url})
        assert client.caches.get(name=cache.name) == cache
        assert not served["small"].engine.held
        assert ask(client, cached_content=cache.name).text == answer.text
        assert ask(client, cached_content=cache.name).text == answer.text
        assert len(served["small"].engine.held) == 1


def test_cached_tools_are_those_of_the_request(client, running, served):
    declared = types.FunctionDeclaration(
        name="star", description="find a star", parameters_json_schema={"type": "object", "properties": {}}
    )
    cache = create(client, tools=[types.Tool(function_declarations=[declared])], tool_config={"function_calling_config": {"mode": "ANY"}})
    asked = GenerateContentRequest(contents=(Content((Part(text="where?"),)),), cached_content=cache.name)
    request = prepare(running.server, served["small"], asked).request
    [held] = served["small"].engine.held
    assert request.constraint is not None and "find a star" in small_model().vocabulary.decode(request.prompt.ids)
    np.testing.assert_array_equal(request.prompt.ids[: len(held.prompt)], held.prompt.ids)


def test_deleted_content_is_given_back_and_its_files_go_with_it(client, running, served):
    file = client.files.upload(file=io.BytesIO(PNG), config={"mime_type": "image/png"})
    cache = create(client, contents=[file])
    client.files.delete(name=file.name)
    assert list((running.store.folder / "media").iterdir())
    client.caches.delete(name=cache.name)
    assert not served["small"].engine.held and not list((running.store.folder / "media").iterdir())
    for call in (client.caches.get, client.caches.delete, lambda name: ask(client, cached_content=name)):
        with pytest.raises(genai.errors.ClientError, match="403 PERMISSION_DENIED"):
            call(name=cache.name)


def test_expired_content_is_given_back_and_refused(client, running, served):
    cache = create(client, ttl="60s")
    assert ask(client, cached_content=cache.name).text is not None
    running.clock.ahead = 61
    with pytest.raises(genai.errors.ClientError, match="403 PERMISSION_DENIED"):
        ask(client, cached_content=cache.name)
    release_ended(running.server)
    assert not served["small"].engine.held


def test_it_lives_an_hour_or_as_long_as_was_said_last(client):
    cache = create(client)
    assert (cache.expire_time - cache.create_time).total_seconds() == pytest.approx(3600, abs=5)
    cache = client.caches.update(name=cache.name, config={"ttl": "7200s"})
    assert (cache.expire_time - cache.update_time).total_seconds() == pytest.approx(7200, abs=5)
    at = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
    with pytest.raises(genai.errors.ClientError, match="400 INVALID_ARGUMENT"):
        client.caches.update(name=cache.name, config={"expire_time": at})
    at = cache.create_time.replace(microsecond=0) + datetime.timedelta(days=1)
    assert client.caches.update(name=cache.name, config={"expire_time": at}).expire_time == at
    assert client.caches.get(name=cache.name).expire_time == at


def test_the_list_goes_page_by_page(client):
    names = [create(client, display_name=f"number {i}").name for i in range(3)]
    pager = client.caches.list(config={"page_size": 2})
    assert [cache.display_name for cache in pager.page] == ["number 2", "number 1"]
    assert [cache.name for cache in pager] == names[::-1]


def test_what_cannot_be_cached_is_refused_and_leaves_nothing(http, served):
    text = {"contents": [{"parts": [{"text": "a"}]}]}
    for body, error in (
        ({}, (400, "INVALID_ARGUMENT")),
        (text | {"model": "models/none"}, (404, "NOT_FOUND")),
        (text | {"ttl": "0s"}, (400, "INVALID_ARGUMENT")),
        (text | {"expireTime": "2020-01-01T00:00:00Z"}, (400, "INVALID_ARGUMENT")),
        (text | {"ttl": "5s", "expireTime": "2090-01-01T00:00:00Z"}, (400, "INVALID_ARGUMENT")),
        ({"contents": [{"parts": [{"fileData": {"fileUri": "gs://bucket/a.png"}}]}]}, (400, "INVALID_ARGUMENT")),
        ({"contents": [{"parts": [{"fileData": {"fileUri": "files/nosuch"}}]}]}, (403, "PERMISSION_DENIED")),
    ):
        assert error_of(http.post("/v1beta/cachedContents", json={"model": "models/small"} | body)) == error, body
    assert http.get("/v1beta/cachedContents").json() == {} and not served["small"].engine.held


def test_a_request_that_cannot_have_the_content_is_refused(client, http):
    cache = create(client)
    for body, error in (
        ({"cachedContent": "cachedContents/nosuch"}, (403, "PERMISSION_DENIED")),
        ({"cachedContent": "nosuch"}, (403, "PERMISSION_DENIED")),
        ({"cachedContent": "batchPredictionJobs/123"}, (400, "INVALID_ARGUMENT")),
        ({"systemInstruction": {"parts": [{"text": "a"}]}}, (400, "INVALID_ARGUMENT")),
        ({"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}, (400, "INVALID_ARGUMENT")),
    ):
        body = {"contents": [{"parts": [{"text": "a"}]}], "cachedContent": cache.name} | body
        assert error_of(http.post("/v1beta/models/small:generateContent", json=body)) == error, body


def test_content_of_another_model_is_refused(client, http):
    body = {"contents": [{"parts": [{"text": "a"}]}], "cachedContent": create(client).name}
    assert error_of(http.post("/v1beta/models/other:generateContent", json=body)) == (400, "INVALID_ARGUMENT")
    assert http.patch(f"/v1beta/{body['cachedContent']}", json={"displayName": "b"}).status_code == 400
