"""Batches over a real socket, by the official client and by plain HTTP, through restarts and a full engine."""

import io
import json

import httpx
import numpy as np
import pytest
from google import genai
from google.genai import types
from small_model import small_model
from stored_server import error_of, serving, until
from watched_engine import WatchedEngine

from pollux.media import encode_image
from pollux.serve import batches, leased_work
from pollux.serve.errors import disk_full
from pollux.serve.server import Served, Settings

TEXTS = ("a big red circle", "the small blue star", "what colour is it?")
PNG = encode_image(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def models(real_engine):
    return {"small": Served("small", small_model(), WatchedEngine(real_engine))}


@pytest.fixture(scope="module")
def server(tmp_path_factory, models):
    with serving(tmp_path_factory.mktemp("store"), models) as running:
        yield running


@pytest.fixture
def engine(models):
    """One that has seen nothing yet."""
    models["small"].engine.renew()
    return models["small"].engine


@pytest.fixture
def running(server, engine):
    """The server, which forgets what a test made."""
    yield server
    server.clock.ahead = 0.0
    for kind in ("batch", "file"):
        for record in server.store.records.all(kind):
            server.store.delete(record)
    server.upkeep.changed()


def request(text, **config):
    config = {"temperature": 0, "maxOutputTokens": 4} | config
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], "generationConfig": config}


def inline(*requests, **batch):
    return {"batch": {"displayName": "some", "inputConfig": {"requests": {"requests": [*requests]}}} | batch}


def create(http, body, method="batchGenerateContent"):
    answer = http.post(f"/v1beta/models/small:{method}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["name"]


def ended(http, name):
    """The operation when it is done."""
    until(lambda: http.get(f"/v1beta/{name}").json()["done"])
    return http.get(f"/v1beta/{name}").json()


def responses(operation):
    return operation["metadata"]["output"]["inlinedResponses"]["inlinedResponses"]


def texts(results):
    return [result["response"]["candidates"][0]["content"]["parts"][0]["text"] for result in results]


def alone(http, text):
    answer = http.post("/v1beta/models/small:generateContent", json=request(text)).json()
    return answer["candidates"][0]["content"]["parts"][0]["text"]


def test_a_batch_of_the_client_gives_the_answers_of_generate_content_in_order(client, http):
    config = types.GenerateContentConfig(temperature=0, max_output_tokens=4)
    requests = [types.InlinedRequest(contents=text, config=config, metadata={"key": text}) for text in TEXTS]
    batch = client.batches.create(model="small", src=requests, config={"display_name": "three"})
    assert (batch.state.name, batch.model, batch.display_name) == ("JOB_STATE_PENDING", "models/small", "three")
    until(lambda: client.batches.get(name=batch.name).state.name == "JOB_STATE_SUCCEEDED")
    done = client.batches.get(name=batch.name)
    assert [one.response.text for one in done.dest.inlined_responses] == [alone(http, text) for text in TEXTS]
    assert [one.metadata["key"] for one in done.dest.inlined_responses] == list(TEXTS)
    assert done.end_time >= done.create_time


def test_a_request_that_is_wrong_spoils_only_its_own_answer(http):
    wrong = [
        {"request": {}},
        {"request": request("a", temperature=9)},
        {"request": {"contents": 3}},
        {},
        {"request": request("a") | {"model": "x"}},
    ]
    done = ended(http, create(http, inline({"request": request("a")}, *wrong)))
    assert done["metadata"]["batchStats"] == {"requestCount": "6", "successfulRequestCount": "1", "failedRequestCount": "5"}
    assert [one["error"]["code"] for one in responses(done)[1:]] == [3, 3, 3, 3, 5]
    assert all(one["error"]["message"] for one in responses(done)[1:])


def test_a_batch_takes_of_the_room_of_its_owner(tmp_path, models):
    with serving(tmp_path, models, Settings(max_storage=1000)) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        name = create(http, inline(*[{"request": request("a")}] * 4))
        answer = http.post("/v1beta/models/small:batchGenerateContent", json=inline(*[{"request": request("a")}] * 8))
        assert error_of(answer) == (429, "RESOURCE_EXHAUSTED") and "more than the limit of 1000 bytes" in answer.text
        assert [record.name for record in running.store.records.all("batch")] == [name.removeprefix("batches/")]
        ended(http, name)
        kept = len(json.dumps(responses(http.get(f"/v1beta/{name}").json())))
        assert 0 < running.store.records.used("") <= kept
        http.delete(f"/v1beta/{name}").raise_for_status()
        assert running.store.records.used("") == 0


def test_a_file_of_requests_gives_a_file_of_answers(client, http):
    client.files.upload(file=io.BytesIO(PNG), config={"mime_type": "image/png", "name": "picture"})
    seen = request("what colour is it?")
    seen["contents"][0]["parts"].append({"fileData": {"fileUri": "files/picture", "mimeType": "image/png"}})
    lines = [{"key": f"number {i}", "request": request(text)} for i, text in enumerate(TEXTS)] + [{"key": "seen", "request": seen}]
    source = "\n".join(map(json.dumps, lines)) + '\n\n{"key": "half", "request"\n'
    file = client.files.upload(file=io.BytesIO(source.encode()), config={"mime_type": "application/jsonl"})
    batch = client.batches.create(model="small", src=file.name)
    client.files.delete(name=file.name)
    until(lambda: client.batches.get(name=batch.name).state.name == "JOB_STATE_SUCCEEDED")
    name = client.batches.get(name=batch.name).dest.file_name
    results = [json.loads(line) for line in client.files.download(file=name).decode().splitlines()]
    assert [result.get("key") for result in results] == ["number 0", "number 1", "number 2", "seen", None]
    assert texts(results[:3]) == [alone(http, text) for text in TEXTS]
    assert results[3]["response"]["usageMetadata"]["promptTokensDetails"][1]["modality"] == "IMAGE"
    assert "not JSON" in results[4]["error"]["message"]
    assert client.files.get(name=name).source.name == "GENERATED"


@pytest.mark.filterwarnings("ignore:.*experimental")
def test_embeddings_come_in_batches_too(client, http):
    source = {"inlined_requests": {"contents": list(TEXTS), "config": {"output_dimensionality": 8}}}
    batch = client.batches.create_embeddings(model="small", src=source)
    until(lambda: client.batches.get(name=batch.name).state.name == "JOB_STATE_SUCCEEDED")
    found = client.batches.get(name=batch.name).dest.inlined_embed_content_responses
    expected = client.models.embed_content(model="small", contents=list(TEXTS), config={"output_dimensionality": 8})
    for one, other in zip(found, expected.embeddings, strict=True):
        np.testing.assert_allclose(one.response.embedding.values, other.values, rtol=1e-5)


def test_batches_wait_behind_all_other_requests(http, engine):
    ended(http, create(http, inline({"request": request("a")})))
    alone(http, "a")
    batched, asked = engine.requests
    assert batched.priority > asked.priority


def test_a_full_engine_is_asked_again(http, engine, monkeypatch):
    monkeypatch.setattr(leased_work, "RETRY_SECONDS", 0.01)
    engine.full = 3
    done = ended(http, create(http, inline(*({"request": request(text)} for text in TEXTS))))
    assert texts(responses(done)) == [alone(http, text) for text in TEXTS]


@pytest.mark.parametrize("from_file", [False, True])
def test_a_batch_goes_on_after_a_restart_and_asks_nothing_twice(tmp_path, real_engine, from_file):
    requests = [request(f"{text} {i}") for i in range(4) for text in TEXTS]
    first, second = WatchedEngine(real_engine), WatchedEngine(real_engine)
    first.answers = 5
    with (
        serving(tmp_path, {"small": Served("small", small_model(), first)}) as running,
        httpx.Client(base_url=running.url, timeout=60) as http,
    ):
        body = inline(*({"request": one} for one in requests))
        if from_file:
            client = genai.Client(api_key="any", http_options={"base_url": running.url})
            lines = "\n".join(json.dumps({"key": str(i), "request": one}) for i, one in enumerate(requests))
            file = client.files.upload(file=io.BytesIO(lines.encode()), config={"mime_type": "application/jsonl"})
            body = {"batch": {"inputConfig": {"fileName": file.name}}}
        name = create(http, body)
        until(lambda: http.get(f"/v1beta/{name}").json()["metadata"]["batchStats"].get("successfulRequestCount") == "5")
        assert http.get(f"/v1beta/{name}").json()["metadata"]["state"] == "BATCH_STATE_RUNNING"
    with (
        serving(tmp_path, {"small": Served("small", small_model(), second)}) as running,
        httpx.Client(base_url=running.url, timeout=60) as http,
    ):
        done = ended(http, name)
        assert done["metadata"]["batchStats"] == {"requestCount": "12", "successfulRequestCount": "12"}
        assert len(second.requests) == 7
        if from_file:
            answer = http.get(f"/v1beta/{done['metadata']['output']['responsesFile']}:download")
            results = [json.loads(line) for line in answer.text.splitlines()]
        else:
            results = responses(done)
        asked = [one["contents"][0]["parts"][0]["text"] for one in requests]
        assert texts(results) == [alone(http, text) for text in asked]


def test_an_engine_that_ends_leaves_its_requests_for_the_next_start(tmp_path, engine, models, real_engine):
    engine.answers = 0
    with serving(tmp_path, models) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        name = create(http, inline(*({"request": request(text)} for text in TEXTS)))
        until(lambda: len(engine.silent) == 3)
        engine.end()
    engine.answers = None
    with serving(tmp_path, models) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        assert len(texts(responses(ended(http, name)))) == 3


def test_a_cancelled_batch_stops_and_its_jobs_with_it(http, engine):
    engine.answers = 0
    name = create(http, inline(*({"request": request(text)} for text in TEXTS)))
    until(lambda: len(engine.silent) == 3)
    assert http.post(f"/v1beta/{name}:cancel", json={}).json() == {}
    until(lambda: all(job.cancelled for job in engine.silent))
    done = http.get(f"/v1beta/{name}").json()
    assert (done["metadata"]["state"], done["done"], done["error"]["code"]) == ("BATCH_STATE_CANCELLED", True, 1)
    assert http.post(f"/v1beta/{name}:cancel").json() == {}  # a second time changes nothing
    engine.answers = None
    other = ended(http, create(http, inline({"request": request("a")})))
    assert other["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert http.get(f"/v1beta/{name}").json() == done


def test_a_batch_that_ended_does_not_begin(http, engine, running):
    engine.answers = 0
    name = create(http, inline({"request": request("a")}))
    until(lambda: engine.silent)
    record = running.store.records.get("batch", name.removeprefix("batches/"))
    assert record.data["state"] == "BATCH_STATE_RUNNING"
    http.post(f"/v1beta/{name}:cancel")
    batches.begin(running.store, record)
    batches.end(running.store, record, "BATCH_STATE_SUCCEEDED")
    assert http.get(f"/v1beta/{name}").json()["metadata"]["state"] == "BATCH_STATE_CANCELLED"


def test_results_wait_for_room_on_the_disk(http, client, running, monkeypatch):
    real, tries = running.store.write, []

    def full(*arguments):
        tries.append(arguments)
        if len(tries) < 3:
            running.upkeep.changed()
            raise disk_full()
        return real(*arguments)

    file = client.files.upload(file=io.BytesIO(json.dumps({"request": request("a")}).encode()), config={"mime_type": "application/jsonl"})
    monkeypatch.setattr(running.store, "write", full)
    done = ended(http, client.batches.create(model="small", src=file.name).name)
    assert done["metadata"]["state"] == "BATCH_STATE_SUCCEEDED" and len(tries) == 3


def test_a_deleted_batch_is_gone_with_all_it_had(http, engine, running):
    engine.answers = 1
    name = create(http, inline(*({"request": request(text)} for text in TEXTS)))
    until(lambda: len(engine.silent) == 2)
    assert http.delete(f"/v1beta/{name}").json() == {}
    until(lambda: all(job.cancelled for job in engine.silent))
    for answer in (http.get(f"/v1beta/{name}"), http.delete(f"/v1beta/{name}"), http.post(f"/v1beta/{name}:cancel")):
        assert error_of(answer) == (404, "NOT_FOUND")
    assert not any(running.store.records.all(kind) for kind in ("batch", "batch_item", "batch_result"))


def test_a_batch_that_takes_two_days_expires(http, engine, running):
    engine.answers = 0
    name = create(http, inline(*({"request": request("a")} for _ in range(20))))
    until(lambda: len(engine.silent) == Settings().batch_requests)
    running.clock.ahead = 48 * 3600 + 1
    for job in engine.silent:
        job.end(TimeoutError("too late"))
        job.tell()
    done = ended(http, name)
    assert (done["metadata"]["state"], done["error"]["code"]) == ("BATCH_STATE_EXPIRED", 4)


def test_batches_of_one_priority_take_turns_and_a_higher_one_goes_first(tmp_path, engine, models):
    engine.answers = 0
    with serving(tmp_path, models, Settings(batch_requests=1)) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        create(http, inline({"request": request("blocks")}, priority=9))
        until(lambda: len(engine.silent) == 1)
        names = [create(http, inline(*({"request": request(f"{who} {i}")} for i in range(2)))) for who in "ab"]
        names.append(create(http, inline({"request": request("first")}, priority=1)))
        engine.answers = None
        [blocked] = engine.silent
        blocked.end(ValueError("this one failed"))
        blocked.tell()
        for name in names:
            ended(http, name)
    decode = small_model().vocabulary.decode
    order = [decode([i for i in one.prompt.ids if i not in small_model().vocabulary.special_ids]) for one in engine.requests]
    assert order == ["blocks", "first", "a 0", "b 0", "a 1", "b 1"]


def test_the_list_goes_page_by_page(client, http):
    names = [create(http, inline({"request": request("a")})) for _ in range(3)]
    pager = client.batches.list(config={"page_size": 2})
    assert [batch.name for batch in pager.page] == names[:0:-1]
    assert [batch.name for batch in pager] == names[::-1]


def test_a_list_tells_which_batches_have_their_results_in_a_file(client, http):
    """Those of the others come with the batch alone."""
    name = create(http, inline({"request": request("a")}))
    until(lambda: client.batches.get(name=name).state == "JOB_STATE_SUCCEEDED")
    assert client.batches.list().page[0].dest is None and client.batches.get(name=name).dest.inlined_responses


def test_what_is_no_batch_is_refused(http):
    for body, error in (
        ({}, (400, "INVALID_ARGUMENT")),
        (inline(), (400, "INVALID_ARGUMENT")),
        ({"batch": {"inputConfig": {"fileName": "files/nosuch"}}}, (403, "PERMISSION_DENIED")),
        ({"batch": {"inputConfig": {"fileName": "gs://bucket/a"}}}, (400, "INVALID_ARGUMENT")),
    ):
        assert error_of(http.post("/v1beta/models/small:batchGenerateContent", json=body)) == error, body
    body = inline({"request": request("a")})
    assert error_of(http.post("/v1beta/models/none:batchGenerateContent", json=body)) == (404, "NOT_FOUND")
    assert http.get("/v1beta/batches").json() == {}
