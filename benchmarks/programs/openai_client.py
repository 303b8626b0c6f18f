"""OpenAI's client against a server: chat, streams, tools, schemas, pictures, completions, embeddings, models."""

from __future__ import annotations

import base64
import json
from typing import Literal

import numpy as np
import openai
from checks import MODEL, URL, WEATHER, is_unit, pdf, picture, run
from pydantic import BaseModel

client = openai.OpenAI(api_key="none", base_url=f"{URL}/v1")
TOOL = {"type": "function", "function": {"name": "weather", "description": "Weather of a city.", "parameters": WEATHER}}
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "what is the number after 1?"}]


class Answer(BaseModel):
    colour: Literal["red", "green"]
    number: int


def models() -> None:
    names = [model.id for model in client.models.list()]
    assert names and client.models.retrieve(names[0]).id == names[0]


def chat() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASKED, max_completion_tokens=30)
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 30


def several_answers_with_a_seed() -> None:
    asked = {"model": MODEL, "messages": ASKED, "n": 3, "seed": 5, "temperature": 1.0, "max_tokens": 20}
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    assert len(first.choices) == 3
    assert [choice.message.content for choice in first.choices] == [choice.message.content for choice in second.choices]


def stream_is_the_answer() -> None:
    asked = {"model": MODEL, "messages": ASKED, "temperature": 0.0, "max_tokens": 40}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and chunks[-1].usage == whole.usage


def log_probabilities() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASKED, logprobs=True, top_logprobs=3, max_tokens=8, temperature=0)
    places = answer.choices[0].logprobs.content
    assert len(places) == answer.usage.completion_tokens
    assert all(place.logprob <= 0 and len(place.top_logprobs) == 3 for place in places)


def tool_is_called_and_answered() -> None:
    asked = [{"role": "user", "content": "Does it rain in Oslo?"}]
    answer = client.chat.completions.create(model=MODEL, messages=asked, tools=[TOOL], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls" and call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    asked += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": '{"rain": true}'}]
    assert client.chat.completions.create(model=MODEL, messages=asked, tools=[TOOL], max_tokens=20).choices[0].message.role == "assistant"


def tool_in_a_stream() -> None:
    asked = [{"role": "user", "content": "Does it rain in Oslo?"}]
    chosen = {"type": "function", "function": {"name": "weather"}}
    with client.chat.completions.stream(model=MODEL, messages=asked, tools=[TOOL], tool_choice=chosen) as stream:
        message = stream.get_final_completion().choices[0].message
    assert json.loads(message.tool_calls[0].function.arguments)["city"] in ("Oslo", "Rome")


def json_by_a_schema() -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=ASKED, response_format=Answer)
    assert isinstance(answer.choices[0].message.parsed, Answer)


def json_object() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASKED, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def _counted(*parts) -> int:
    """Tokens of a message with these parts, which is answered."""
    asked = [{"role": "user", "content": [{"type": "text", "text": "caption"}, *parts]}]
    answer = client.chat.completions.create(model=MODEL, messages=asked, max_tokens=20)
    assert answer.choices[0].message.content
    return answer.usage.prompt_tokens


def picture_in_a_message() -> None:
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    assert _counted({"type": "image_url", "image_url": {"url": url}}) > _counted()


def pdf_in_a_message() -> None:
    url = "data:application/pdf;base64," + base64.b64encode(pdf()).decode()
    assert _counted({"type": "file", "file": {"filename": "two pages.pdf", "file_data": url}}) > _counted()


def completions() -> None:
    answer = client.completions.create(model=MODEL, prompt=["a big red", "a small"], max_tokens=8, temperature=0, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == len(choice.logprobs.top_logprobs) > 0


def embeddings() -> None:
    numbers, packed = (
        client.embeddings.create(model=MODEL, input=["a red circle", "a blue star"], encoding_format=form) for form in ("float", "base64")
    )
    assert all(is_unit(item.embedding) for item in numbers.data) and numbers.usage.prompt_tokens > 0
    for item, other in zip(numbers.data, packed.data, strict=True):
        unpacked = np.frombuffer(base64.b64decode(other.embedding), "<f4") if isinstance(other.embedding, str) else other.embedding
        assert np.allclose(item.embedding, unpacked, atol=1e-6)


def errors() -> None:
    for asked, kind in (({"model": "no-such-model"}, openai.NotFoundError), ({"model": MODEL, "temperature": 9}, openai.BadRequestError)):
        try:
            client.chat.completions.create(messages=ASKED, **asked)
        except kind as error:
            assert error.body["message"]
        else:
            raise AssertionError(f"{asked} was answered")


run(
    *(models, chat, several_answers_with_a_seed, stream_is_the_answer, log_probabilities, tool_is_called_and_answered, tool_in_a_stream),
    *(json_by_a_schema, json_object, picture_in_a_message, pdf_in_a_message, completions, embeddings, errors),
)
