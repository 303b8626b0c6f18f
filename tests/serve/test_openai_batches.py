"""Batches in the form of OpenAI's API, by its own client: a file of requests in, a file of answers out."""

import json

import httpx
import openai
import pytest
from google import genai
from small_model import running as engine_of
from small_model import small_model
from stored_server import serving, until

from pollux.serve.server import Served

MESSAGES = [{"role": "user", "content": "a big red circle"}]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with (
        engine_of(small_model()) as engine,
        serving(tmp_path_factory.mktemp("store"), {"small": Served("small", small_model(), engine)}) as it,
    ):
        yield it


@pytest.fixture(params=["/v1", "/v1beta/openai"])
def client(running, request):
    with openai.OpenAI(base_url=running.url + request.param, api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture
def gemini(running):
    return genai.Client(api_key="any", http_options={"base_url": running.url})


def line(custom_id, url="/v1/chat/completions", **body):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "small"} | body}


def uploaded(gemini, tmp_path, *lines):
    path = tmp_path / "requests.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return gemini.files.upload(file=path, config={"mime_type": "jsonl"}).name


def answered(client, gemini, name, endpoint):
    """The batch when it is done, and the lines of its results by their ids."""
    batch = client.batches.create(input_file_id=name, endpoint=endpoint, completion_window="24h", metadata={"for": "a test"})
    assert (batch.object, batch.status, batch.input_file_id) == ("batch", "in_progress", name)
    until(lambda: client.batches.retrieve(batch.id).status != "in_progress")
    batch = client.batches.retrieve(batch.id)
    lines = gemini.files.download(file=batch.output_file_id).decode().splitlines()
    return batch, {one["custom_id"]: one for one in map(json.loads, lines)}


def test_chat_completions_are_answered_as_alone(client, gemini, tmp_path):
    asked = {"messages": MESSAGES, "max_tokens": 5, "temperature": 0}
    name = uploaded(gemini, tmp_path, line("a", **asked), line("b", **asked, n=2), line("c", **asked, stream=True), line("d", messages=[]))
    batch, found = answered(client, gemini, name, "/v1/chat/completions")
    alone = client.chat.completions.create(model="small", **asked)
    assert (batch.status, batch.metadata) == ("completed", {"for": "a test"})
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (4, 2, 2)
    assert found["a"]["response"]["body"]["choices"][0]["message"]["content"] == alone.choices[0].message.content
    assert found["a"]["response"]["body"]["usage"]["total_tokens"] == alone.usage.total_tokens
    assert len(found["b"]["response"]["body"]["choices"]) == 2
    for one, said in (("c", "has no stream"), ("d", "messages are missing")):
        assert found[one]["response"]["status_code"] == 400 and said in found[one]["response"]["body"]["error"]["message"]
        assert said in found[one]["error"]["message"]


def test_embeddings_are_those_of_the_route(client, gemini, tmp_path):
    name = uploaded(gemini, tmp_path, line("a", "/v1/embeddings", input="a red circle"))
    _, found = answered(client, gemini, name, "/v1/embeddings")
    alone = client.embeddings.create(model="small", input="a red circle", encoding_format="float")
    assert found["a"]["response"]["body"]["data"][0]["embedding"] == pytest.approx(alone.data[0].embedding, abs=1e-6)


def test_lines_that_are_no_requests_fail_by_themselves(client, gemini, tmp_path):
    name = uploaded(gemini, tmp_path, line("a", "/v1/embeddings", input="a"), "{", line("b", messages=MESSAGES, max_tokens=1))
    batch, found = answered(client, gemini, name, "/v1/chat/completions")
    assert batch.request_counts.failed == 2 and "must be the endpoint of the batch" in found["a"]["error"]["message"]
    assert found["b"]["response"]["status_code"] == 200


def test_batches_are_listed_and_cancelled_each_in_their_own_api(running, client, gemini, tmp_path):
    asked = line("a", messages=MESSAGES, max_tokens=400)
    name = uploaded(gemini, tmp_path, *[asked] * 200)
    batch = client.batches.create(input_file_id=name, endpoint="/v1/chat/completions", completion_window="24h")
    assert client.batches.cancel(batch.id).status == "cancelled"
    assert batch.id in [one.id for one in client.batches.list()] and batch.id in [one.name for one in gemini.batches.list()]
    made = gemini.batches.create(model="small", src=[{"contents": [{"role": "user", "parts": [{"text": "a"}]}]}])
    assert made.name not in [one.id for one in client.batches.list()]
    with pytest.raises(openai.BadRequestError, match="made through the Gemini API"):
        client.batches.retrieve(made.name)
    assert "operations" in httpx.get(f"{running.url}/v1/batches").json()  # without a bearer token the list is Gemini's


def test_what_is_no_batch_is_refused(client, gemini, tmp_path):
    name = uploaded(gemini, tmp_path, line("a", messages=MESSAGES))
    for settings, said in (
        ({"endpoint": "/v1/images"}, "endpoint is '/v1/images'"),
        ({"input_file_id": "file-abc/x"}, "input_file_id"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            client.batches.create(**({"input_file_id": name, "endpoint": "/v1/embeddings", "completion_window": "24h"} | settings))
    with pytest.raises(openai.NotFoundError, match="there is no batch"):
        client.batches.retrieve("batches/none")
