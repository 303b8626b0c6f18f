"""The list of models, and their embeddings."""

import copy

import numpy as np
import pytest
from small_model import LIMIT, small_model
from starlette.testclient import TestClient

from pollux.content import Content, Text
from pollux.serve.app import create_app
from pollux.serve.models import described
from pollux.serve.prepare import prepare
from pollux.serve.server import Served, Server, Settings
from pollux.serve.wire.generate import GenerateContentRequest
from pollux.serve.wire.message import parse


@pytest.fixture(scope="module")
def api():
    model = small_model()
    served = {name: Served(name, model, None) for name in ("one", "two", "three")}
    return TestClient(create_app(Server(served, {"gemini-2.5-flash": "one", "gemini-*": "two"}, settings=Settings(max_output_tokens=100))))


def test_a_model_says_what_it_can(api):
    model = api.get("/v1/models/two").json()
    assert model["name"] == "models/two" and (model["inputTokenLimit"], model["outputTokenLimit"]) == (LIMIT, 100)
    assert "generateContent" in model["supportedGenerationMethods"] and "thinking" not in model


def test_a_model_says_which_tools_of_the_server_it_can_be_asked_with():
    def tools(model, **enabled):
        return described(Server({"small": Served("small", model, None)}, tools=enabled), "small").supported_tools

    everything = dict.fromkeys(("url_context", "google_search", "code_execution"))
    assert tools(small_model(), **everything) == ("codeExecution", "googleSearch", "urlContext")
    assert tools(small_model(), google_search=None) == ("googleSearch",) and tools(small_model()) == ()
    wordless = copy.copy(small_model())
    wordless.vocabulary = None
    assert tools(wordless, **everything) == ()


def test_an_engine_without_room_for_all_makes_prompts_and_answers_shorter():
    server = Server({"small": Served("small", small_model(), None, longest=100)})
    assert described(server, "small").input_token_limit == described(server, "small").output_token_limit == 100
    plan = prepare(server, server.find("small"), parse(GenerateContentRequest, {"contents": [{"parts": [{"text": "a star"}]}]})[0])
    assert len(plan.request.prompt) + plan.request.sampling.max_output_tokens == 100


@pytest.mark.parametrize(("name", "base"), [("gemini-2.5-flash", "one"), ("gemini-9-ultra", "two")])
def test_an_alias_is_answered_under_the_name_that_was_asked_for(api, name, base):
    model = api.get(f"/v1beta/models/{name}").json()
    assert (model["name"], model["baseModelId"]) == (f"models/{name}", base)


def test_the_list_comes_in_pages_that_end(api):
    names, token = [], ""
    for _ in range(4):
        page = api.get("/v1beta/models", params={"pageSize": 1} | ({"pageToken": token} if token else {})).json()
        names += [model["name"] for model in page["models"]]
        token = page.get("nextPageToken", "")
    assert names == ["models/one", "models/two", "models/three", "models/gemini-2.5-flash"] and not token
    assert len(api.get("/v1beta/models").json()["models"]) == 4
    for wrong in ({"pageSize": "many"}, {"pageToken": "-1"}):
        assert api.get("/v1beta/models", params=wrong).status_code == 400


def test_a_method_that_no_model_has_is_a_404(api):
    response = api.post("/v1beta/models/lyria-3:predictMusic", json={})
    assert response.status_code == 404 and "models/lyria-3 is not found for API version v1beta" in response.json()["error"]["message"]


@pytest.mark.parametrize("method", ["generateContent", "predictLongRunning", "countTokens"])
def test_a_model_that_is_not_served_is_a_404_in_the_words_of_the_original(api, method):
    message = api.post(f"/v1/models/nosuch:{method}", json={}).json()["error"]["message"]
    assert message.startswith("models/nosuch is not found for API version v1: models/nosuch is not served here, but one, two")


def test_models_cannot_be_changed(api):
    assert api.patch("/v1beta/models/one", json={}).status_code == 405 and api.delete("/v1beta/models/nobody").status_code == 404


def test_an_alias_must_stand_for_a_model():
    with pytest.raises(ValueError, match="the alias a stands for b, which is not served"):
        Server({}, {"a": "b"})


def test_an_embedding_is_the_models_own(api):
    body = {"content": {"parts": [{"text": "a big red circle"}]}}
    values = api.post("/v1beta/models/one:embedContent", json=body).json()["embedding"]["values"]
    np.testing.assert_allclose(values, small_model().embed([Content("user", (Text("a big red circle"),))]), rtol=1e-5)


def test_a_shorter_embedding_is_the_beginning_made_a_unit_vector(api):
    requests = [
        {"model": "models/one", "content": {"parts": [{"text": text}]}, "taskType": "RETRIEVAL_QUERY"} | size
        for text, size in (("a star", {}), ("a star", {"outputDimensionality": 10}), ("a circle", {"outputDimensionality": 10}))
    ]
    response = api.post("/v1beta/models/one:batchEmbedContents", json={"requests": requests})
    whole, short, other = (np.array(e["values"]) for e in response.json()["embeddings"])
    np.testing.assert_allclose(short, whole[:10] / np.linalg.norm(whole[:10]), rtol=1e-5)
    assert len(short) == len(other) == 10 and not np.allclose(short, other)
    assert "requests[0].taskType" in response.headers["warning"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, "requests[0].content is missing"),
        ({"content": {"parts": [{"text": "a"}]}, "outputDimensionality": 33}, "between 1 and 32"),
        ({"content": {"parts": [{"text": "a"}]}, "model": "models/two"}, "another than that of the address"),
        ({"content": {"parts": [{"text": ""}]}}, "there is nothing to embed"),
        ({"content": {"parts": [{"text": "a big red circle " * 1000}]}}, "tokens, but at most 512 can be embedded"),
    ],
)
def test_what_cannot_be_embedded_is_a_400(api, request_, said):
    response = api.post("/v1beta/models/one:batchEmbedContents", json={"requests": [request_]})
    assert response.status_code == 400 and said in response.json()["error"]["message"]
