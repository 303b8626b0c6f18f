"""The official client against a real server over a real socket: what people's programs do, and what happens when they leave."""

import asyncio
import enum
import io
import json

import httpx
import numpy as np
import PIL.Image
import pydantic
import pytest
from google import genai
from google.genai import errors, types
from small_model import running as engine_of
from small_model import small_model
from stored_server import serving, until

from pollux.media import encode_image
from pollux.serve.server import Served

PNG = encode_image(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))


class Jobs:
    """An engine whose jobs a test can see."""

    def __init__(self, engine):
        self.engine, self.jobs = engine, []

    def submit(self, request, notify=None):
        self.jobs.append(self.engine.submit(request, notify))
        return self.jobs[-1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with engine_of(small_model()) as engine, engine_of(small_model("<draw>")) as drawing:
        models = {"small": Served("small", small_model(), Jobs(engine)), "draws": Served("draws", small_model("<draw>"), drawing)}
        with serving(tmp_path_factory.mktemp("store"), models) as running:
            yield running


@pytest.fixture(scope="module", params=["v1", "v1beta"])
def client(served, request):
    return genai.Client(api_key="any", http_options=types.HttpOptions(base_url=served.url, api_version=request.param))


def config(**more):
    return types.GenerateContentConfig(**{"max_output_tokens": 60, "seed": 1} | more)


def test_a_question_with_a_picture(client):
    picture = types.Part.from_bytes(data=PNG, mime_type="image/png")
    response = client.models.generate_content(model="small", contents=["what is it?", picture], config=config(temperature=0.5, top_k=20))
    assert response.candidates[0].finish_reason in (types.FinishReason.STOP, types.FinishReason.MAX_TOKENS)
    assert {d.modality for d in response.usage_metadata.prompt_tokens_details} == {types.MediaModality.TEXT, types.MediaModality.IMAGE}
    assert response.model_version == "small" and response.response_id


def test_a_stream_is_the_answer_in_pieces(client):
    asked = {"model": "small", "contents": "tell me of the circle", "config": config(temperature=1.0)}
    chunks = list(client.models.generate_content_stream(**asked))
    assert "".join(chunk.text or "" for chunk in chunks) == client.models.generate_content(**asked).text
    assert len(chunks) > 1 and chunks[-1].candidates[0].finish_reason and not chunks[0].candidates[0].finish_reason

    async def gathered():
        return [chunk.text or "" async for chunk in await client.aio.models.generate_content_stream(**asked)]

    assert "".join(asyncio.run(gathered())) == "".join(chunk.text or "" for chunk in chunks)


def test_a_chat_keeps_its_turns(client):
    chat = client.chats.create(model="small", config=config(max_output_tokens=8))
    chat.send_message("what colour is it?")
    first = client.models.count_tokens(model="small", contents=chat.get_history())
    chat.send_message("and what size?")
    assert client.models.count_tokens(model="small", contents=chat.get_history()).total_tokens > first.total_tokens
    assert [content.role for content in chat.get_history(curated=False)] == ["user", "model", "user", "model"]


class Shape(pydantic.BaseModel):
    name: str
    size: int
    colour: enum.Enum("Colour", {"RED": "red", "BLUE": "blue"}) | None


def test_an_answer_keeps_to_a_schema(client):
    asked = config(response_mime_type="application/json", response_schema=list[Shape], temperature=1.0)
    response = client.models.generate_content(model="small", contents="list the shapes", config=asked)
    assert isinstance(response.parsed, list) and all(isinstance(shape, Shape) for shape in response.parsed)
    schema = {
        "type": "object",
        "properties": {"shapes": {"type": "array", "items": {"type": "string"}, "minItems": 2}},
        "required": ["shapes"],
    }
    asked = config(response_mime_type="application/json", response_json_schema=schema, temperature=1.0)
    chunks = client.models.generate_content_stream(model="small", contents="list the shapes", config=asked)
    assert len(json.loads("".join(part.text for chunk in chunks for part in chunk.parts))["shapes"]) >= 2


def test_an_answer_is_one_of_an_enum(client):
    asked = config(response_mime_type="text/x.enum", response_schema={"type": "STRING", "enum": ["circle", "star"]})
    assert client.models.generate_content(model="small", contents="which?", config=asked).text in ("circle", "star")


def test_functions_are_called_and_answered(client, served):
    seen = []

    def look(direction: str) -> str:
        """Looks in a direction."""
        seen.append(direction)
        return "a star"

    calling = types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode="ANY"))
    automatic = types.AutomaticFunctionCallingConfig(maximum_remote_calls=2)
    asked = config(tools=[look], tool_config=calling, automatic_function_calling=automatic, temperature=0.3)
    response = client.models.generate_content(model="small", contents="what is there?", config=asked)
    assert seen and response.function_calls[0].name == "look"
    history = response.automatic_function_calling_history
    assert history[1].parts[0].function_call.args == {"direction": seen[0]} and history[2].parts[0].function_response.name == "look"
    read = small_model().vocabulary.decode(served.server.models["small"].engine.jobs[-1].request.prompt.ids)
    assert '<response>{"name":"look","response":{"result":"a star"}}</response>' in read


def test_a_picture_is_drawn(client):
    response = client.models.generate_content(model="draws", contents="draw a star", config=config(response_modalities=["IMAGE"]))
    assert PIL.Image.open(io.BytesIO(response.parts[0].inline_data.data)).size == (6, 4)


def test_counting_embedding_and_listing(client):
    assert client.models.count_tokens(model="small", contents="a star").total_tokens == small_model().count_tokens("a star")["text"]
    made = client.models.embed_content(model="small", contents=["a star", "a circle"], config={"output_dimensionality": 8})
    assert [len(embedding.values) for embedding in made.embeddings] == [8, 8]
    assert [model.name for model in client.models.list(config={"page_size": 1})] == ["models/small", "models/draws"]


def test_errors_reach_the_client_with_their_codes(client):
    with pytest.raises(errors.ClientError) as raised:
        client.models.generate_content(model="other", contents="a")
    assert (raised.value.code, raised.value.status) == (404, "NOT_FOUND")
    with pytest.raises(errors.ClientError, match="The input token count") as raised:
        list(client.models.generate_content_stream(model="small", contents="a " * 1000))
    assert raised.value.code == 400


@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent?alt=sse"])
def test_a_client_that_leaves_ends_the_work(served, method):
    jobs = served.server.models["small"].engine.jobs
    jobs.clear()
    # 500 characters that no answer has, so that it goes on to its last token
    body = {"contents": [{"parts": [{"text": "a"}]}], "generationConfig": {"maxOutputTokens": 490, "responseMimeType": "application/json"}}
    body["generationConfig"]["responseSchema"] = {"type": "STRING", "minLength": 5000}
    with httpx.Client(base_url=served.url) as http:
        with pytest.raises(httpx.ReadTimeout):
            with http.stream("POST", f"/v1beta/models/small:{method}", json=body, timeout=0.3) as response:
                next(response.iter_bytes())
                raise httpx.ReadTimeout("enough has been read")
    until(lambda: jobs and jobs[0].done)
    assert jobs[0].cancelled and not any(piece.finish_reason for piece in jobs[0].take())
