"""generateContent, streams and countTokens over the wire, with a real model; its answers are random, what surrounds them is not."""

import base64
import gzip
import io
import json
import re

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from small_model import LIMIT, running, small_model
from starlette.testclient import TestClient
from test_wire import JSON

from pollux.content import Audio, Content, Image, Text
from pollux.generate.requests import DeadlineExceeded, Job, Overloaded, Piece
from pollux.media import encode_audio, encode_image
from pollux.serve.app import create_app
from pollux.serve.server import Served, Server, Settings

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
PNG = base64.b64encode(encode_image(PIXELS)).decode()
NO_PICTURE = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
WAV = base64.b64encode(encode_audio(np.zeros(3200, np.float32), 16000)).decode()
HELLO = [{"role": "user", "parts": [{"text": "what colour is the big circle?"}]}]
URL = "/v1beta/models/small:"
FEW = {"maxOutputTokens": 12, "seed": 7}


class Watched:
    """An engine whose jobs a test can see, and whose next submit it can make fail."""

    def __init__(self, engine):
        self.engine, self.jobs, self.error = engine, [], None

    def submit(self, request, notify=None):
        if self.error is not None:
            raise self.error
        self.jobs.append(self.engine.submit(request, notify))
        return self.jobs[-1]


@pytest.fixture(scope="module")
def api():
    """A client of a server with a model that draws now and then, and with another that has no picture to draw."""
    model, drawing = small_model(), small_model("<draw>")
    with running(model) as engine, running(drawing) as drawing_engine:
        models = {"small": Served("small", model, Watched(engine)), "draws": Served("draws", drawing, Watched(drawing_engine))}
        server = Server(models, {"gemini-2.5-flash": "small", "gemini-*": "small"}, settings=Settings(max_body=1 << 20))
        with TestClient(create_app(server), raise_server_exceptions=False) as client:
            yield client
        server.close()


@pytest.fixture
def engine(api):
    watched = api.app.state.server.models["small"].engine
    watched.jobs.clear()
    yield watched
    watched.error = None


def ask(api, body, url=URL + "generateContent", **more):
    return api.post(url, json=body, **more)


def generate(api, url=URL, config=FEW, **body):
    response = ask(api, {"contents": HELLO, "generationConfig": config} | body, url + "generateContent")
    assert response.status_code == 200, response.text
    return response.json()


def error(response):
    made = response.json()["error"]
    assert made["code"] == response.status_code
    return made["code"], made["status"], made["message"]


def stream(api, body, url=URL):
    """The JSON of every chunk of an event stream, whose form is checked to the byte."""
    response = ask(api, body, url + "streamGenerateContent?alt=sse")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    events = response.content.split(b"\r\n\r\n")
    assert events.pop() == b"" and all(event.startswith(b"data: {") and b"\n" not in event for event in events)
    return [json.loads(event[6:]) for event in events]


def text_of(answer, index=0):
    return "".join(part.get("text", "") for part in answer["candidates"][index]["content"]["parts"])


def said(chunks, index=0):
    of = [c for chunk in chunks for c in chunk.get("candidates", ()) if c["index"] == index]
    return "".join(part.get("text", "") for c in of for part in c["content"].get("parts", ()))


def test_an_answer_is_what_the_model_says_to_the_contents(api, engine):
    model, hello = small_model(), [Content("user", (Text(HELLO[0]["parts"][0]["text"]),))]
    expected = model.generate(hello, max_output_tokens=12, temperature=0)
    answer = generate(api)
    candidate = answer["candidates"][0]
    assert text_of(answer) == expected.text and candidate["content"]["role"] == "model" and candidate["index"] == 0
    assert candidate["finishReason"] == {"stop": "STOP", "length": "MAX_TOKENS"}[expected.finish_reason]
    assert candidate["avgLogprobs"] == pytest.approx(float(engine.jobs[0].results()[0].logprobs.mean()), abs=1e-4)
    assert answer["modelVersion"] == "small" and answer["responseId"]
    usage = answer["usageMetadata"]
    assert usage["promptTokenCount"] == expected.usage.prompt_tokens
    assert usage["candidatesTokenCount"] == candidate["tokenCount"] == expected.usage.output_tokens
    assert usage["totalTokenCount"] == expected.usage.prompt_tokens + expected.usage.output_tokens


def test_a_stream_says_the_same_and_ends_with_text_and_reason_together(api):
    body = {"contents": HELLO, "generationConfig": {"maxOutputTokens": 40, "temperature": 1, "seed": 3}}
    whole, chunks = ask(api, body).json(), stream(api, body)
    assert said(chunks) == text_of(whole) and len(chunks) > 1
    for chunk in chunks:
        assert all(part["text"] for part in chunk["candidates"][0]["content"]["parts"])
    reasons = [chunk["candidates"][0].get("finishReason") for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole["candidates"][0]["finishReason"]]
    assert chunks[-1]["usageMetadata"] == whole["usageMetadata"]
    assert len({chunk["responseId"] for chunk in chunks}) == 1
    totals = [chunk["usageMetadata"]["totalTokenCount"] for chunk in chunks]
    assert totals == sorted(totals)


def test_the_first_chunk_of_a_stream_is_never_its_last(api, engine):
    chunks = stream(api, {"contents": HELLO, "generationConfig": FEW | {"maxOutputTokens": 4}})
    assert [len(piece.ids) for piece in engine.jobs[0].results()] == [4] and len(chunks) == 2
    first, last = (chunk["candidates"][0] for chunk in chunks)
    assert "finishReason" not in first and first["content"]["parts"][0]["text"] and last["finishReason"]
    assert said(chunks) == engine.jobs[0].results()[0].text and len(said(chunks)) > 1


def test_a_stream_without_events_is_one_json_array(api):
    body = {"contents": HELLO, "generationConfig": FEW}
    response = ask(api, body, URL + "streamGenerateContent")
    assert response.headers["content-type"] == "application/json" and said(response.json()) == said(stream(api, body))


def test_enums_come_by_number_for_clients_that_ask_so(api):
    body = {"contents": HELLO, "generationConfig": FEW}
    answer = ask(api, body, URL + "generateContent?$alt=json;enum-encoding=int").json()
    assert answer["candidates"][0]["finishReason"] in (1, 2) and answer["usageMetadata"]["promptTokensDetails"][0]["modality"] == 1


def test_candidates_have_seeds_of_their_own(api):
    config = {"maxOutputTokens": 12, "temperature": 1.5, "seed": 5, "candidateCount": 2}
    both = generate(api, config=config)
    assert [c["index"] for c in both["candidates"]] == [0, 1]
    alone = [text_of(generate(api, config=config | {"candidateCount": 1, "seed": 5 + i})) for i in range(2)]
    assert [text_of(both, i) for i in range(2)] == alone and alone[0] != alone[1]
    assert both["usageMetadata"]["candidatesTokenCount"] == sum(c["tokenCount"] for c in both["candidates"])
    chunks = stream(api, {"contents": HELLO, "generationConfig": config})
    assert [said(chunks, i) for i in range(2)] == alone


def test_without_a_seed_each_answer_is_drawn_anew(api, engine):
    for _ in range(2):
        generate(api, config={"maxOutputTokens": 1})
    assert engine.jobs[0].request.sampling.seed != engine.jobs[1].request.sampling.seed


def test_settings_of_a_request_take_the_place_of_the_models_own(api, engine):
    config = {"temperature": 0.5, "top_k": 20.0, "topP": "0.9", "maxOutputTokens": 3, "stopSequences": ["zzz"], "seed": str(2**40 + 3)}
    generate(api, config=config | {"presencePenalty": 0.25, "frequencyPenalty": -0.5})
    sampling = engine.jobs[0].request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.max_output_tokens) == (0.5, 20, 0.9, 3)
    assert (sampling.stop, sampling.seed, sampling.presence_penalty, sampling.frequency_penalty) == (("zzz",), 3, 0.25, -0.5)
    generate(api, config={"maxOutputTokens": 2})
    assert engine.jobs[1].request.sampling.temperature == small_model().sampling.temperature


def test_logprobs_are_those_of_the_tokens(api):
    answer = generate(api, config=FEW | {"responseLogprobs": True, "logprobs": 3})
    candidate = answer["candidates"][0]
    chosen, top = candidate["logprobsResult"]["chosenCandidates"], candidate["logprobsResult"]["topCandidates"]
    assert len(chosen) == len(top) == candidate["tokenCount"]
    assert [t["candidates"][0]["tokenId"] for t in top] == [c["tokenId"] for c in chosen]  # at temperature 0 the best is chosen
    assert sum(c["logProbability"] for c in chosen) / len(chosen) == pytest.approx(candidate["avgLogprobs"])
    assert "".join(c["token"] for c in chosen).startswith(text_of(answer))
    assert "logprobsResult" not in generate(api)["candidates"][0]


def test_media_are_counted_by_what_they_are(api):
    parts = [
        {"text": "what is it?"},
        {"inlineData": {"mimeType": "image/png", "data": PNG}},
        {"inline_data": {"mime_type": "audio/wav", "data": WAV}},
        {"inlineData": {"mimeType": "text/markdown", "data": base64.b64encode(b"a big red circle").decode()}},
    ]
    expected = small_model().count_tokens(
        [Text("what is it?"), Image(PIXELS), Audio(np.zeros(3200, np.float32), 16000), Text("a big red circle")]
    )
    usage = generate(api, contents=[{"parts": parts}])["usageMetadata"]
    counted = {detail["modality"]: detail["tokenCount"] for detail in usage["promptTokensDetails"]}
    assert counted == {name.upper(): number for name, number in expected.items()}
    count = ask(api, {"contents": [{"parts": parts}]}, URL + "countTokens").json()
    assert count["totalTokens"] == usage["promptTokenCount"] and count["promptTokensDetails"] == usage["promptTokensDetails"]


def test_low_resolution_takes_a_quarter_of_the_tokens(api):
    contents = [{"parts": [{"inlineData": {"mimeType": "image/png", "data": PNG}}]}]
    counts = []
    for resolution in ("MEDIA_RESOLUTION_LOW", "MEDIA_RESOLUTION_HIGH"):
        asked = {"contents": contents, "generationConfig": {"mediaResolution": resolution}}
        made = ask(api, {"generateContentRequest": asked}, URL + "countTokens").json()
        counts += [d["tokenCount"] for d in made["promptTokensDetails"] if d["modality"] == "IMAGE"]
    assert counts[0] < counts[1] and counts[1] == small_model().count_tokens(Image(PIXELS))["image"]


def test_a_system_instruction_stands_before_the_contents(api):
    asked = {"contents": HELLO, "systemInstruction": {"parts": {"text": "big star"}}}
    expected = small_model().count_tokens([Content("system", (Text("big star"),)), Content("user", (Text(HELLO[0]["parts"][0]["text"]),))])
    assert ask(api, {"generateContentRequest": asked}, URL + "countTokens").json()["totalTokens"] == expected["text"]


def test_a_drawing_is_a_png_and_counts_as_an_image(api):
    answer = generate(api, "/v1beta/models/draws:", {"maxOutputTokens": 40, "responseModalities": ["IMAGE"]})
    (part,) = answer["candidates"][0]["content"]["parts"]
    assert part["inlineData"]["mimeType"] == "image/png"
    assert PIL.Image.open(io.BytesIO(base64.b64decode(part["inlineData"]["data"]))).size == (6, 4)
    details = {d["modality"]: d["tokenCount"] for d in answer["usageMetadata"]["candidatesTokensDetails"]}
    assert details["IMAGE"] == 5  # two codes of two digits and the end of the drawing


def test_with_text_alone_no_drawing_is_begun(api):
    both = generate(api, "/v1beta/models/draws:", {"maxOutputTokens": 60, "temperature": 1, "seed": 1})
    assert any("inlineData" in part for part in both["candidates"][0]["content"]["parts"])
    text = generate(api, "/v1beta/models/draws:", {"maxOutputTokens": 60, "temperature": 1, "seed": 1, "responseModalities": ["TEXT"]})
    assert all("inlineData" not in part for part in text["candidates"][0]["content"]["parts"])
    assert [d["modality"] for d in text["usageMetadata"]["candidatesTokensDetails"]] == ["TEXT"]


def test_fields_without_effect_are_named_in_a_header(api):
    body = {"contents": HELLO, "generationConfig": FEW | {"speechConfig": {}, "thinkingConfig": {"thinkingBudget": 5}}, "né\nw": 1}
    response = ask(api, body)
    assert response.status_code == 200
    warning = response.headers["warning"]
    for name in ("generationConfig.speechConfig", "generationConfig.thinkingConfig", r"n\xe9\nw"):
        assert name in warning


def test_json_is_packed_for_who_accepts_it_and_streams_are_not(api):
    body = {"contents": HELLO, "generationConfig": FEW}
    with api.stream("POST", URL + "generateContent", json=body, headers={"accept-encoding": "gzip"}) as response:
        raw = b"".join(response.iter_raw())
        assert response.headers["content-encoding"] == "gzip" and json.loads(gzip.decompress(raw))["candidates"]
    for url in ("streamGenerateContent", "streamGenerateContent?alt=sse"):
        assert "content-encoding" not in ask(api, body, URL + url, headers={"accept-encoding": "gzip"}).headers
    assert "content-encoding" not in ask(api, body, headers={"accept-encoding": "identity"}).headers


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "contents are missing"),
        ({"contents": [{"parts": []}]}, r"contents\[0\].parts must not be empty"),
        ({"contents": [{"role": "narrator", "parts": [{"text": "a"}]}]}, r"contents\[0\].role must be"),
        ({"contents": [{"parts": [{"text": 1}]}]}, r"contents\[0\].parts\[0\].text must be a string"),
        ({"contents": [{"parts": [{"inlineData": {"mimeType": "image/png"}}]}]}, "inlineData.data is empty"),
        ({"contents": [{"parts": [NO_PICTURE]}]}, "not an image of a known format"),
        (
            {"contents": [{"parts": [{"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}}]}]},
            "inlineData: PDF of 3 bytes in memory is",
        ),
        ({"contents": [{"parts": [{"inlineData": {"mimeType": "x/y", "data": "AAAA"}}]}]}, "the mime type 'x/y' is not supported"),
        ({"contents": [{"parts": [{"inlineData": {"mimeType": "text/plain", "data": "/w=="}}]}]}, "is no text in UTF-8"),
        ({"contents": [{"parts": [{"fileData": {"fileUri": "gs://a/b.png"}}]}]}, "must be the uri of an uploaded file"),
        ({"contents": [{"parts": [{"fileData": {"fileUri": "https://a.example/b.png"}}]}]}, "does not fetch files from the web"),
        ({"contents": [{"role": "model", "parts": [{"inlineData": {"mimeType": "audio/wav", "data": WAV}}]}]}, "a model writes only"),
        ({"contents": HELLO, "generationConfig": {"candidateCount": 0}}, "candidateCount is 0 but must be between 1 and 8"),
        ({"contents": HELLO, "generationConfig": {"maxOutputTokens": 0}}, "maxOutputTokens is 0 but must be at least 1"),
        ({"contents": HELLO, "generationConfig": {"temperature": 2.5}}, "temperature is 2.5 but must be between 0 and 2"),
        ({"contents": HELLO, "generationConfig": {"topP": 0}}, "top_p is 0.0 but must be"),
        ({"contents": HELLO, "generationConfig": {"logprobs": 1}}, "only be given if response_logprobs is true"),
        ({"contents": HELLO, "generationConfig": {"responseModalities": ["AUDIO"]}}, "Multi-modal output is not supported"),
        ({"contents": HELLO, "generationConfig": {"stopSequences": [""]}}, "stopSequences must be"),
        ({"contents": [{"parts": [{"text": "a " * LIMIT}]}]}, rf"The input token count \(\d+\) exceeds .* allowed \({LIMIT - 1}\)"),
        ({"contents": [{"parts": [NO_PICTURE] * LIMIT}]}, f"{LIMIT} pictures and pages are more than"),  # before one is looked at
    ],
)
@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent?alt=sse"])
def test_a_wrong_request_is_a_400_that_says_what_is_wrong(api, engine, method, body, said):
    code, status, message = error(ask(api, body, URL + method))
    assert (code, status) == (400, "INVALID_ARGUMENT")
    assert re.search(said, message), message
    assert not engine.jobs


def test_a_body_that_is_too_large_or_no_json_is_a_400(api):
    assert error(api.post(URL + "generateContent", content=b" " * (1 << 20) + b"{}"))[0] == 400
    assert error(api.post(URL + "generateContent", content=(b" " * (1 << 19) for _ in range(3))))[0] == 400
    assert "not JSON" in error(api.post(URL + "generateContent", content=b"{"))[2]


def test_what_is_not_there_is_a_404_and_a_wrong_method_a_405(api):
    for url in ("/nothing", "/v1beta/nothing", "/v2/models", "/v1beta/models/other", "/v1beta/models/google/gemini-2.5-flash"):
        code, status, message = error(api.get(url))
        assert (code, status) == (404, "NOT_FOUND"), url
    assert error(ask(api, {"contents": HELLO}, "/v1/models/other:generateContent"))[:2] == (404, "NOT_FOUND")
    assert error(api.put(URL + "generateContent"))[0] == 405
    assert error(api.get(URL + "generateContent"))[0] == 404


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (Overloaded("the queue is full"), (429, "RESOURCE_EXHAUSTED")),
        (DeadlineExceeded("too late"), (504, "DEADLINE_EXCEEDED")),
        (ValueError("the prompt does not fit the cache"), (400, "INVALID_ARGUMENT")),
        (RuntimeError("secret detail"), (500, "INTERNAL")),
    ],
)
@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent?alt=sse"])
def test_errors_of_the_engine_have_codes_of_the_api(api, engine, method, raised, expected):
    engine.error = raised
    code, status, message = error(ask(api, {"contents": HELLO}, URL + method))
    assert (code, status) == expected and "secret" not in message


def test_a_request_whose_time_is_over_is_a_504(api):
    response = ask(api, {"contents": HELLO}, headers={"x-server-timeout": "0.000001"})
    assert error(response)[:2] == (504, "DEADLINE_EXCEEDED")
    assert error(ask(api, {"contents": HELLO}, headers={"x-server-timeout": "soon"}))[0] == 400


def test_an_error_inside_a_stream_is_its_last_chunk(api, engine, monkeypatch):
    def failing(request, notify=None):
        job = Job(request, notify)
        job.add(Piece(0, (Text("so far"),), (300, 301), (-1.0, -1.0), ()))
        job.end(RuntimeError("secret detail"))
        job.tell()
        return job

    monkeypatch.setattr(engine.engine, "submit", failing)
    chunks = stream(api, {"contents": HELLO})
    assert said(chunks[:-1]) == "so fa" and list(chunks[-1]) == ["error"] and chunks[-1]["error"]["code"] == 500
    assert error(ask(api, {"contents": HELLO}))[0] == 500


def test_count_tokens_refuses_what_it_would_not_count(api):
    code, _, message = error(ask(api, {"contents": HELLO, "systemInstruction": {"parts": [{"text": "a"}]}}, URL + "countTokens"))
    assert code == 400 and 'Unknown name "systemInstruction"' in message
    assert error(ask(api, {}, URL + "countTokens"))[0] == 400


@settings(deadline=None, database=None, derandomize=True, max_examples=60)
@given(JSON)
def test_any_json_never_gives_a_server_error(api, data):
    for method in ("generateContent", "countTokens", "embedContent", "batchEmbedContents"):
        if isinstance(data, dict):
            data = data | {"generationConfig": {"maxOutputTokens": 1}}
        assert api.post(URL + method, content=json.dumps(data)).status_code < 500
