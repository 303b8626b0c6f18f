"""OpenAI's own client against a whole server: the same engine under other names."""

import base64
import io
import json
import wave

import httpx
import numpy as np
import openai
import PIL.Image
import pytest
from google import genai
from small_model import small_model
from whole_server import serving

from pollux.content import Content, Image, Text


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("data")) as whole:
        yield whole


@pytest.fixture(scope="module", params=["/v1", "/v1beta/openai"])
def client(server, request):
    with openai.OpenAI(base_url=server.url + request.param, api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def one(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def ask(client, content="a red circle", **settings):
    settings = {"model": "pollux", "temperature": 0, "max_tokens": 12} | settings
    return client.chat.completions.create(messages=[{"role": "user", "content": content}], **settings)


def test_an_answer_is_what_the_model_says(client):
    answer = ask(client)
    expected = small_model().generate("a red circle", temperature=0, max_output_tokens=12)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (expected.usage.prompt_tokens, 12)
    assert answer.usage.total_tokens == expected.usage.prompt_tokens + 12
    assert answer.model == "pollux" and answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")


def test_a_stream_adds_up_to_the_answer_and_ends_with_its_usage(client):
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    said = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(choice.delta.content or "" for choice in said) == whole.choices[0].message.content
    assert [choice.delta.role for choice in said] == ["assistant"] + [None] * (len(said) - 1)
    assert [choice.finish_reason for choice in said] == [None] * (len(said) - 1) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_ends_with_done_and_has_usage_only_on_request(server):
    asked = {"model": "pollux", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "stream": True}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=60)
    events = answer.text.split("\n\n")
    assert answer.headers["content-type"].startswith("text/event-stream") and events[-2:] == ["data: [DONE]", ""]
    assert not any("usage" in json.loads(event.removeprefix("data: ")) for event in events[:-2])


def test_several_answers_have_their_own_seeds(one):
    settings = {"temperature": 1.0, "seed": 7, "max_tokens": 8}
    answer = ask(one, n=3, **settings)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2] and len(set(texts)) > 1
    assert [choice.message.content for choice in ask(one, n=3, **settings).choices] == texts
    assert ask(one, temperature=1.0, seed=8, max_tokens=8).choices[0].message.content == texts[1]
    streamed = {0: "", 1: "", 2: ""}
    for chunk in ask(one, n=3, stream=True, **settings):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == texts


def test_an_answer_ends_before_a_stop_string(one):
    settings = {"temperature": 1.0, "seed": 7}
    text = ask(one, **settings).choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    assert text.index(stop) > 0
    for given in (stop, [stop, "no such text"]):
        answer = ask(one, stop=given, **settings)
        assert answer.choices[0].message.content == text[: text.index(stop)] and answer.choices[0].finish_reason == "stop"


def test_max_completion_tokens_takes_the_place_of_max_tokens(one):
    assert ask(one, max_tokens=9, max_completion_tokens=4).usage.completion_tokens == 4


def test_log_probabilities_of_the_tokens_come_with_their_bytes(one):
    answer = ask(one, logprobs=True, top_logprobs=1)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 12 and all(token.logprob <= 0 for token in tokens)
    assert all(token.bytes == list(token.token.encode()) for token in tokens if token.bytes is not None)
    assert all(token.top_logprobs[0].token == token.token for token in tokens)
    assert ask(one).choices[0].logprobs is None
    streamed = [
        token for chunk in ask(one, logprobs=True, stream=True) for c in chunk.choices if c.logprobs for token in c.logprobs.content
    ]
    assert [token.logprob for token in streamed] == [token.logprob for token in tokens]


def png(colour):
    data = io.BytesIO()
    PIL.Image.new("RGB", (16, 16), colour).save(data, "PNG")
    return data.getvalue()


def test_a_picture_in_a_data_url_is_read(one):
    picture = png((250, 10, 10))
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    answer = ask(one, [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url}}])
    expected = small_model().generate(Content("user", (Text("what?"), Image(picture))), temperature=0, max_output_tokens=12)
    assert answer.choices[0].message.content == expected.text and answer.usage.prompt_tokens == expected.usage.prompt_tokens


def test_a_sound_is_read(one):
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
        file.writeframes(np.zeros(16000, "<i2").tobytes())
    sound = {"data": base64.b64encode(data.getvalue()).decode(), "format": "wav"}
    answer = ask(one, [{"type": "input_audio", "input_audio": sound}, {"type": "text", "text": "what?"}])
    assert answer.usage.prompt_tokens > ask(one, "what?").usage.prompt_tokens + 10


def test_a_url_is_not_fetched_unless_the_operator_allows_it(one):
    with pytest.raises(openai.BadRequestError, match="does not fetch"):
        ask(one, [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}])


def test_a_conversation_with_a_system_message_is_read_in_its_order(one):
    messages = [
        {"role": "system", "content": "a big star"},
        {"role": "user", "content": "what colour"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [{"type": "text", "text": "is the circle?"}]},
    ]
    answer = one.chat.completions.create(model="small", messages=messages, temperature=0, max_tokens=12)
    turns = [Content(role, (Text(text),)) for role, text in (("system", "a big star"), ("user", "what colour"), ("model", "red"))]
    expected = small_model().generate([*turns, Content("user", (Text("is the circle?"),))], temperature=0, max_output_tokens=12)
    assert answer.choices[0].message.content == expected.text


def test_a_completion_goes_on_with_a_text_without_turns(client):
    expected = small_model().generate(Content("", (Text("a big"),)), temperature=0, max_output_tokens=16)
    answer = client.completions.create(model="pollux", prompt="a big", temperature=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected.text, "length")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (expected.usage.prompt_tokens, 16)
    chunks = client.completions.create(model="pollux", prompt="a big", temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text


def test_completions_of_several_prompts_come_in_their_order(one):
    answer = one.completions.create(model="pollux", prompt=["a big", "a small"], n=2, temperature=0, max_tokens=5, logprobs=1)
    expected = [
        small_model().generate(Content("", (Text(text),)), temperature=0, max_output_tokens=5).text for text in ("a big", "a small")
    ]
    assert [choice.text for choice in answer.choices] == [expected[0]] * 2 + [expected[1]] * 2
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3] and answer.usage.completion_tokens == 20
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 5 and logprobs.text_offset[0] == 0


@pytest.mark.parametrize("settings", [{"prompt": {}}, {"prompt": []}, {"suffix": "b"}, {"prompt": ["a", "b"], "stream": True}])
def test_a_completion_says_what_it_cannot_do(one, settings):
    with pytest.raises(openai.BadRequestError):
        one.completions.create(**({"model": "pollux", "prompt": "a"} | settings))


def test_models_are_listed_for_the_clients_of_both_apis(client, server):
    assert [model.id for model in client.models.list()] == ["small", "pollux"]
    assert client.models.retrieve("pollux").id == "pollux"
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.models.retrieve("gpt-9")
    gemini = genai.Client(api_key="any", http_options={"base_url": server.url})
    assert [model.name for model in gemini.models.list()] == ["models/small", "models/pollux"]
    assert gemini.models.get(model="pollux").name == "models/pollux"


def test_embeddings_come_as_numbers_or_packed(client):
    texts = ["a red circle", "a blue star"]
    packed = client.embeddings.create(model="pollux", input=texts)  # the client asks for base64 and unpacks it
    plain = client.embeddings.create(model="pollux", input=texts, encoding_format="float")
    for answer in (packed, plain):
        made = np.array([one.embedding for one in answer.data])
        assert np.allclose(made, [small_model().embed(text) for text in texts], atol=1e-5)
        assert [one.index for one in answer.data] == [0, 1] and answer.usage.prompt_tokens > 2
    short = client.embeddings.create(model="pollux", input=texts[0], dimensions=8)
    assert len(short.data[0].embedding) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "candidateCount"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "logprobs is true"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"reasoning_effort": "heroic"}, "reasoning_effort"),
        ({"tools": [{"type": "web"}]}, r"tools\[0\]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"stop": 5}, "stop"),
    ],
)
def test_a_mistake_is_named(one, settings, message):
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        ask(one, **({"extra_body": settings} if "tools" in settings or "stop" in settings else settings))
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages are missing"),
        ([{"role": "robot", "content": "a"}], r"messages\[0\].role"),
        ([{"role": "user", "content": 5}], r"messages\[0\].content"),
        ([{"role": "user", "content": [{"type": "smell"}]}], r"messages\[0\].content\[0\]"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}]}], "base64"),
        ([{"role": "tool", "content": "5", "tool_call_id": "x"}], "tool_call_id"),
    ],
)
def test_a_mistake_in_a_message_is_named(one, messages, message):
    with pytest.raises(openai.BadRequestError, match=message):
        one.chat.completions.create(model="pollux", messages=messages)


def test_what_is_not_there_is_a_404_in_the_form_of_its_client(one, server):
    with pytest.raises(openai.NotFoundError, match="gpt-9") as caught:
        ask(one, model="gpt-9")
    assert caught.value.type == "not_found_error"
    assert httpx.post(f"{server.url}/v1/openai/nothing").json()["error"]["type"] == "not_found_error"
    assert httpx.get(f"{server.url}/v1/nothing").json()["error"]["status"] == "NOT_FOUND"
    assert httpx.get(f"{server.url}/v1/chat/completions").json()["error"]["type"] == "invalid_request_error"


def test_fields_without_effect_are_named_in_a_header(server):
    asked = {"model": "pollux", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "user": "me"}
    assert "user" in httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=60).headers["warning"]
