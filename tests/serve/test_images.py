"""predict: pictures from a prompt."""

import base64
import io

import numpy as np
import PIL.Image
import pytest
from small_model import running, small_model
from starlette.testclient import TestClient

from pollux.serve.app import create_app
from pollux.serve.safety import Blocklist
from pollux.serve.server import Served, Server, Settings
from pollux.serve.wire.enums import HarmCategory

URL = "/v1beta/models/small:predict"
WORD = "small"  # that the scorer of the second server finds harmful


@pytest.fixture(scope="module")
def apis():
    """Clients of a server without a scorer and of one that has one."""
    model = small_model()
    with running(model) as engine:
        scorer = Blocklist({HarmCategory.HARM_CATEGORY_HARASSMENT: [WORD]})
        servers = [Server({"small": Served("small", model, engine)}, scorer=scorer) for scorer in (None, scorer)]
        with TestClient(create_app(servers[0])) as one, TestClient(create_app(servers[1])) as two:
            yield one, two
        for server in servers:
            server.close()


def ask(api, prompt="a big red circle", status=200, **parameters):
    reply = api.post(URL, json={"instances": [{"prompt": prompt}], "parameters": parameters})
    assert reply.status_code == status, reply.text
    return reply


def pixels(prediction):
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(prediction["bytesBase64Encoded"]))))


def test_there_are_as_many_pictures_as_asked_for_and_they_are_what_the_model_draws(apis):
    assert len(ask(apis[0]).json()["predictions"]) == 4
    made = ask(apis[0], sampleCount=1).json()["predictions"]
    body = {
        "contents": [{"role": "user", "parts": [{"text": "a big red circle"}]}],
        "generationConfig": {"responseModalities": ["IMAGE"]},
    }
    drawn = apis[0].post("/v1beta/models/small:generateContent", json=body).json()["candidates"]
    expected = [candidate["content"]["parts"][0]["inlineData"]["data"] for candidate in drawn]
    assert [one["bytesBase64Encoded"] for one in made] == expected and {one["mimeType"] for one in made} == {"image/png"}


def test_several_pictures_of_a_model_that_takes_the_likeliest_token_are_not_all_alike(apis):
    assert small_model().sampling.temperature == 0
    assert len({one["bytesBase64Encoded"] for one in ask(apis[0], sampleCount=4).json()["predictions"]}) > 1


def test_a_jpeg_is_one_and_its_quality_counts(apis):
    sizes = []
    for quality in (5, 95):
        (made,) = ask(apis[0], sampleCount=1, outputOptions={"mimeType": "image/jpeg", "compressionQuality": quality}).json()["predictions"]
        data = base64.b64decode(made["bytesBase64Encoded"])
        assert made["mimeType"] == "image/jpeg" and PIL.Image.open(io.BytesIO(data)).format == "JPEG"
        sizes.append(len(data))
    assert sizes[0] < sizes[1] and pixels(made).shape == (4, 6, 3)


def test_guidance_reaches_the_engine(apis, monkeypatch):
    engine, asked = apis[0].app.state.server.models["small"].engine, []
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda request, notify=None: (asked.append(request), submit(request, notify))[1])
    ask(apis[0], sampleCount=1, guidanceScale=3.5)
    ask(apis[0], sampleCount=1)
    assert [request.sampling.guidance for request in asked] == [3.5, small_model().sampling.guidance]


def test_what_cannot_be_honoured_is_named_in_a_header(apis):
    reply = ask(apis[0], sampleCount=1, sampleImageSize="2K", personGeneration="DONT_ALLOW")
    assert "parameters.sampleImageSize" in reply.headers["warning"] and "personGeneration" in reply.headers["warning"]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"sampleCount": 5}, "parameters.sampleCount is 5 but must be between 1 and 4"),
        ({"aspectRatio": "16:9"}, "parameters.aspectRatio is '16:9', but this model draws pictures of 3:2"),
        ({"guidanceScale": -1}, "parameters.guidanceScale is -1"),
        ({"outputOptions": {"mimeType": "image/gif"}}, "must be image/png or image/jpeg"),
        ({"outputOptions": {"compressionQuality": 101}}, "compressionQuality must be between 0 and 100"),
    ],
)
def test_a_wrong_parameter_is_a_400_that_names_it(apis, parameters, said):
    assert said in ask(apis[0], status=400, **parameters).json()["error"]["message"]


@pytest.mark.parametrize("instances", [[], [{}], [{"prompt": "a"}, {"prompt": "b"}]])
def test_there_must_be_one_prompt(apis, instances):
    assert apis[0].post(URL, json={"instances": instances}).status_code == 400


def test_a_prompt_that_is_blocked_gives_no_picture_but_the_reason(apis):
    harmful = f"a {WORD} star"
    assert ask(apis[1], harmful, sampleCount=2).json() == {}
    made = ask(apis[1], harmful, sampleCount=2, includeRaiReason=True, includeSafetyAttributes=True).json()["predictions"]
    assert [set(one) for one in made[:2]] == [{"raiFilteredReason"}] * 2
    found = {"categories": ["HARM_CATEGORY_HARASSMENT"], "scores": [1.0]}
    assert made[2] == {"contentType": "Positive Prompt", "safetyAttributes": found}
    assert len(ask(apis[1], harmful, sampleCount=1, safetySetting="BLOCK_NONE").json()["predictions"]) == 1


def test_an_answer_too_short_for_a_picture_is_refused_in_one_sentence():
    model = small_model()
    with running(model) as engine:
        server = Server({"small": Served("small", model, engine)}, settings=Settings(max_output_tokens=3))
        with TestClient(create_app(server)) as api:
            assert "more than the 3 tokens" in ask(api, status=400).json()["error"]["message"]
        server.close()
