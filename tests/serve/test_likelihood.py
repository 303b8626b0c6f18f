"""Prompts that come back with their likelihood, and the routes that say how a text is cut into tokens."""

import re

import httpx
import numpy as np
import openai
import pytest
from scipy.special import log_softmax
from small_model import LIMIT, small_model
from whole_server import serving

from pollux.generate.likelihood import likelihood
from pollux.generate.prompts import plain
from pollux.tokens.vocabulary import SPECIAL_IDS

BOS = SPECIAL_IDS["<bos>"]
TEXT = "a big red circle is left of the blue star, \u00e9t\u00e9"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("data")) as whole:
        yield whole


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


def ids_of(text):
    return small_model().vocabulary.encode_text(text)


def expected(ids):
    """Log-probabilities [T - 1, V] of what follows each of these ids but the last."""
    return log_softmax(small_model().logits(ids)[:-1].astype(np.float64), axis=-1)


@pytest.mark.parametrize("number", [1, 2, 16, 17, 300])
def test_likelihood_is_the_softmax_of_the_logits_at_any_length(number):
    ids = np.random.default_rng(number).integers(0, 300, number)
    model = small_model()
    found = likelihood(model.params, model.config, plain(ids), top=3)
    assert found.logprobs.shape == (number - 1,) and found.top_ids.shape == found.top_logprobs.shape == (number - 1, 3)
    if number > 1:
        wanted = expected(ids)
        np.testing.assert_allclose(found.logprobs, wanted[np.arange(number - 1), ids[1:]], atol=1e-4)
        np.testing.assert_allclose(found.top_logprobs, -np.sort(-wanted, axis=-1)[:, :3], atol=1e-4)
        np.testing.assert_allclose(found.top_logprobs, np.take_along_axis(wanted, found.top_ids, -1), atol=1e-4)


def test_a_text_comes_back_with_the_likelihood_of_each_token(client):
    answer = client.completions.create(model="pollux", prompt=TEXT, echo=True, logprobs=2, max_tokens=1, temperature=0)
    (choice,), ids = answer.choices, ids_of(TEXT)
    wanted = expected([BOS, *ids])
    assert choice.text.startswith(TEXT) and choice.logprobs.tokens[:-1] == [small_model().vocabulary.decode([i]) for i in ids]
    np.testing.assert_allclose(choice.logprobs.token_logprobs[:-1], wanted[np.arange(len(ids)), ids], atol=1e-4)
    for place, row in zip(choice.logprobs.top_logprobs[:-1], wanted, strict=True):
        np.testing.assert_allclose(max(place.values()), row.max(), atol=1e-4)
    assert choice.logprobs.text_offset[-1] == len(TEXT) and answer.usage.completion_tokens == 1


def test_ids_are_read_as_the_text_that_they_spell(client):
    asked = {"model": "pollux", "echo": True, "logprobs": 1, "max_tokens": 4, "temperature": 0}
    text, ids, both = (client.completions.create(prompt=prompt, **asked) for prompt in (TEXT, ids_of(TEXT), [ids_of(TEXT), TEXT]))
    for choice in (*ids.choices, *both.choices):
        assert choice.text == text.choices[0].text and choice.logprobs.tokens == text.choices[0].logprobs.tokens
        np.testing.assert_allclose(choice.logprobs.token_logprobs, text.choices[0].logprobs.token_logprobs, atol=1e-4)
    (begun,) = client.completions.create(prompt=[BOS, *ids_of(TEXT)], **asked).choices
    assert begun.logprobs.tokens[0] == "<bos>" and begun.logprobs.token_logprobs[0] is None
    np.testing.assert_allclose(begun.logprobs.token_logprobs[1:], text.choices[0].logprobs.token_logprobs, atol=1e-4)


def test_a_prompt_is_repeated_without_log_probabilities(client):
    answer = client.completions.create(model="pollux", prompt=["a big", "a red"], n=2, echo=True, max_tokens=3, temperature=0)
    plain = client.completions.create(model="pollux", prompt=["a big", "a red"], n=2, max_tokens=3, temperature=0)
    prompts = ["a big", "a big", "a red", "a red"]
    assert [choice.text for choice in answer.choices] == [a + b.text for a, b in zip(prompts, plain.choices, strict=True)]
    assert all(choice.logprobs is None for choice in answer.choices)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": [5, 10**6]}, r"prompt\[0\]\[1\] is 1000000 but must be an id in"),
        ({"prompt": [[5], [-1]]}, r"prompt\[1\]\[0\] is -1"),
        ({"prompt": [True]}, "prompt must be a text, a list of ids"),
        ({"prompt": [[]]}, "prompt must be a text, a list of ids"),
        ({"prompt": [5] * LIMIT}, "input token count"),
        ({"prompt": "a", "echo": True, "stream": True}, "a stream does not repeat its prompt"),
        ({"prompt": "a", "echo": True, "logprobs": 21}, "logprobs"),
    ],
)
def test_a_mistake_is_named(client, settings, message):
    with pytest.raises(openai.BadRequestError, match=message):
        client.completions.create(model="pollux", **settings)


def test_a_text_is_cut_and_put_together_again(http):
    ids = ids_of(TEXT)
    cut = http.post("/tokenize", json={"model": "pollux", "prompt": TEXT}).json()
    assert cut == {"count": len(ids) + 1, "max_model_len": LIMIT, "tokens": [BOS, *ids]}
    assert http.post("/tokenize", json={"prompt": TEXT, "add_special_tokens": False}).json()["tokens"] == ids
    assert http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": TEXT}
    info = http.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"]) == ("<bos>", "<eos>")
    assert http.post("/tokenize", json={"prompt": "<eos>", "add_special_tokens": False}).json()["tokens"] == [SPECIAL_IDS["<eos>"]]
    spelled = http.post("/tokenize", json={"prompt": "a <eos>", "add_special_tokens": False}).json()["tokens"]
    assert SPECIAL_IDS["<eos>"] not in spelled  # a text that spells one has none


@pytest.mark.parametrize(
    ("route", "asked", "message"),
    [
        ("/tokenize", {}, "prompt is missing"),
        ("/detokenize", {"tokens": [10**6]}, r"tokens\[0\] is 1000000"),
        ("/tokenize", {"prompt": "a", "model": "gpt-9"}, "gpt-9"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_openais_form(http, route, asked, message):
    error = http.post(route, json=asked).json()["error"]
    assert re.search(message, error["message"]) and error["type"] in ("invalid_request_error", "not_found_error")
