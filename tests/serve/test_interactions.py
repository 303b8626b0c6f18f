"""Interactions with the official client against a whole server; and the steps that they are made of."""

import base64
import io
import json
import re
import threading
import time
import warnings

import httpx
import PIL.Image
import pytest
from google import genai
from small_model import small_model
from stored_server import until
from whole_server import serving

from pollux.content import Content, Text
from pollux.serve.access import Rules
from pollux.serve.errors import ApiError
from pollux.serve.interactions import routes
from pollux.serve.interactions.asked import generate_request
from pollux.serve.interactions.run import Run
from pollux.serve.interactions.steps import Answer, read_input, read_steps
from pollux.serve.server import Settings
from pollux.serve.wire.content import Blob, FileSearch, FunctionCall, GoogleSearch, Part, UrlContext
from pollux.serve.wire.enums import CallingMode, HarmBlockThreshold, HarmCategory, ResponseModality
from pollux.serve.wire.interactions import CreateInteraction
from pollux.serve.wire.message import parse

FEW = {"temperature": 0, "max_output_tokens": 12}
LONG = {"temperature": 0, "max_output_tokens": 400}
RED = "a red circle"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("data")) as whole:
        yield whole


@pytest.fixture(scope="module")
def api(server):
    warnings.simplefilter("ignore")  # the client calls its own fields deprecated
    client = connected(server)  # ends its connections when it is forgotten
    yield client.interactions


def connected(server, key="any"):
    return genai.Client(api_key=key, http_options={"base_url": server.url})


def ask(api, content=RED, **settings):
    return api.create(**{"model": "pollux", "input": content, "generation_config": FEW} | settings)


def said(*texts):
    roles = ("user", "model") * len(texts)
    return small_model().generate([Content(role, (Text(text),)) for role, text in zip(roles, texts, strict=False)], **FEW)


def test_an_interaction_is_what_the_model_says(api):
    made, expected = ask(api), said(RED)
    assert made.output_text == expected.text
    assert [step.type for step in made.steps] == ["model_output"]
    assert made.status == "incomplete" and made.model == "pollux"  # 12 tokens were not enough
    assert (made.usage.total_input_tokens, made.usage.total_output_tokens) == (expected.usage.prompt_tokens, 12)
    assert [(count.modality, count.tokens) for count in made.usage.output_tokens_by_modality] == [("text", 12)]


def test_the_next_turn_goes_on_with_all_turns_before(api):
    first = ask(api)
    second = ask(api, "and blue?", previous_interaction_id=first.id)
    third = ask(api, "and green?", previous_interaction_id=second.id)
    assert second.output_text == said(RED, first.output_text, "and blue?").text
    expected = said(RED, first.output_text, "and blue?", second.output_text, "and green?")
    assert (third.output_text, third.usage.total_input_tokens) == (expected.text, expected.usage.prompt_tokens)


def test_turns_in_the_input_say_the_same_as_stored_ones(api):
    first = ask(api)
    steps = [{"type": "user_input", "content": [{"type": "text", "text": RED}]}, *(step.model_dump() for step in first.steps)]
    steps.append({"type": "user_input", "content": [{"type": "text", "text": "and blue?"}]})
    assert ask(api, steps, store=False).output_text == ask(api, "and blue?", previous_interaction_id=first.id).output_text


def test_events_add_up_to_the_answer(api):
    events = list(ask(api, stream=True))
    kinds = [event.event_type for event in events]
    assert kinds[:2] == ["interaction.created", "step.start"] and kinds[-2:] == ["step.stop", "interaction.completed"]
    assert set(kinds[2:-2]) == {"step.delta"}
    whole = api.get(id=events[0].interaction.id)
    assert "".join(event.delta.text for event in events if event.event_type == "step.delta") == whole.output_text == said(RED).text
    assert events[-1].interaction.status == whole.status
    assert events[-1].interaction.usage.total_tokens == whole.usage.total_tokens


def test_every_event_has_its_line_and_the_stream_says_when_it_is_done(server):
    body = {"model": "pollux", "input": RED, "generation_config": FEW, "stream": True}
    answer = httpx.post(f"{server.url}/v1beta/interactions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, last, nothing = answer.text.split("\n\n")
    for event in events:
        name, data = event.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['event_type']}"
    assert last == "event: done\ndata: [DONE]" and nothing == ""


def test_a_stream_goes_on_behind_any_of_its_events(api):
    events = list(ask(api, stream=True))
    name, text = events[0].interaction.id, api.get(id=events[0].interaction.id).output_text
    told = ""
    for event in events:
        told += event.delta.text if event.event_type == "step.delta" else ""
        rest = list(api.get(id=name, stream=True, last_event_id=event.event_id))
        assert told + "".join(later.delta.text for later in rest if later.event_type == "step.delta") == text
        assert event.event_type not in [later.event_type for later in rest if later.event_type != "step.delta"]
    assert rest == []
    with pytest.raises(Exception, match="last_event_id is 'x'"):
        list(api.get(id=name, stream=True, last_event_id="x"))


def test_what_is_not_stored_or_deleted_is_not_found(api):
    kept, passing = ask(api), ask(api, store=False)
    assert api.get(id=kept.id, include_input=True).output_text == kept.output_text
    api.delete(id=kept.id)
    for name in (kept.id, passing.id):
        with pytest.raises(Exception, match="404.*not_found"):
            api.get(id=name)
        with pytest.raises(Exception, match=f"there is no interaction {name}"):
            ask(api, previous_interaction_id=name)


def test_an_interaction_in_the_background_ends_by_itself(api):
    made = ask(api, background=True)
    assert made.status == "in_progress"
    until(lambda: api.get(id=made.id).status != "in_progress")
    assert api.get(id=made.id).output_text == said(RED).text


def test_a_cancelled_interaction_keeps_what_was_written(api):
    made = ask(api, background=True, generation_config=LONG)
    until(lambda: api.get(id=made.id).steps)
    cancelled = api.cancel(id=made.id)
    assert cancelled.status == "cancelled"
    assert cancelled.output_text and cancelled.usage.total_output_tokens < 400
    assert api.get(id=made.id).output_text == cancelled.output_text
    with pytest.raises(Exception, match="is cancelled; only one in progress"):
        api.cancel(id=made.id)


def test_a_client_that_leaves_ends_the_work_on_its_stream(server, api):
    body = {"model": "pollux", "input": RED, "generation_config": LONG, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/interactions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        name = json.loads(next(lines).removeprefix("data: "))["interaction"]["id"]
    until(lambda: api.get(id=name).status != "in_progress")
    assert api.get(id=name).status == "cancelled"


def test_what_is_deleted_while_it_is_stored_does_not_come_back(server, api, monkeypatch):
    storing, stored, real = threading.Event(), threading.Event(), routes._store

    def slow(server, run, status):
        if status == "in_progress":
            return real(server, run, status)
        storing.set()
        time.sleep(0.5)  # in which the other request is handled
        real(server, run, status)
        stored.set()

    monkeypatch.setattr(routes, "_store", slow)
    name = ask(api, background=True).id
    assert storing.wait(60)
    api.delete(id=name)
    assert stored.wait(60)
    assert server.service.store.records.get("interaction", name) is None


def test_an_interaction_that_a_dead_server_left_is_failed(server, api):
    left = Run("left", "", {"model": "pollux", "status": "in_progress"}, [])
    server.service.store.records.add("interaction", "left", {"data": left.data, "given": [], "steps": []})
    found = api.get(id="left")
    assert found.status == "failed" and "the server ended" in found.errors[0].message


def test_interactions_belong_to_the_key_that_made_them(tmp_path):
    with serving(tmp_path, Rules(keys_required=True)) as whole:
        mine, other = connected(whole, whole.keys.add("mine")), connected(whole, whole.keys.add("other"))
        made = ask(mine.interactions)
        assert mine.interactions.get(id=made.id).id == made.id
        with pytest.raises(Exception, match="404"):
            other.interactions.get(id=made.id)


def test_interactions_take_of_the_room_of_their_owner(tmp_path):
    with serving(tmp_path, settings=Settings(max_storage=2000)) as whole:
        body = {"model": "pollux", "input": RED, "generation_config": FEW}
        answers = [httpx.post(f"{whole.url}/v1/interactions", json=body) for _ in range(4)]
        assert answers[0].status_code == 200 and answers[-1].status_code == 429
        assert "would take more than the limit of 2000 bytes" in answers[-1].json()["error"]["message"]
        assert httpx.post(f"{whole.url}/v1/interactions", json=body | {"background": True}).status_code == 429
        assert not routes._running[whole.service.server]
        httpx.delete(f"{whole.url}/v1/interactions/{answers[0].json()['id']}")
        assert httpx.post(f"{whole.url}/v1/interactions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "nosuch"}, "models/nosuch is not served here"),
        ({"input": []}, "input is missing"),
        ({"input": [{"type": "smell"}]}, "must be one of text, image"),
        ({"input": [{"type": "image"}]}, r"input\[0\].content\[0\] must have either data, in base64, or a uri"),
        ({"background": True, "store": False}, "must be stored"),
        ({"response_modalities": ["audio"]}, "does not answer with AUDIO"),
        ({"generation_config": {"tool_choice": "some"}}, "tool_choice must be one of auto, any, none, validated"),
        ({"generation_config": {"thinking_level": "deep"}}, "thinking_level must be one of"),
        ({"safety_settings": [{"type": "boredom", "threshold": "off"}]}, "must be a category"),
    ],
)
def test_what_is_wrong_is_said(server, settings, message):
    answer = httpx.post(f"{server.url}/v1/interactions", json={"model": "pollux", "input": RED} | settings)
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert error["code"] in ("invalid_argument", "not_found")
    assert re.search(message, error["message"])


def test_an_input_may_be_a_string_a_block_a_step_or_a_list():
    block = {"type": "text", "text": RED}
    step = {"type": "user_input", "content": [block]}
    for data in (RED, block, [block], step, [step]):
        assert read_input(data) == [step]
    answer = {"type": "model_output", "content": [block]}
    assert read_input([block, block, answer, block]) == [{"type": "user_input", "content": [block, block]}, answer, step]


def test_results_of_functions_find_the_names_of_their_calls():
    steps = [
        {"type": "user_input", "content": [{"type": "text", "text": "weather?"}]},
        {"type": "thought", "summary": []},
        {"type": "function_call", "id": "a", "name": "weather", "arguments": {"city": "Rome"}},
        {"type": "function_result", "call_id": "a", "result": "sunny"},
        {
            "type": "function_result",
            "call_id": "a",
            "result": [{"type": "text", "text": "no "}, {"type": "text", "text": "net"}],
            "is_error": True,
        },
        {"type": "function_result", "call_id": "b", "name": "size", "result": {"height": 3}, "colour": "red"},
    ]
    contents, ignored = read_steps(steps, "input")
    assert [content.role for content in contents] == ["user", "model", "user"]
    assert contents[1].parts[0].function_call == FunctionCall("a", "weather", {"city": "Rome"})
    responses = [part.function_response for part in contents[2].parts]
    assert [response.name for response in responses] == ["weather", "weather", "size"]
    assert [response.response for response in responses] == [{"result": "sunny"}, {"error": "no net"}, {"height": 3}]
    assert ignored == ["input[5].colour"]
    with pytest.raises(ApiError, match="no function_call before it has this id"):
        read_steps([{"type": "function_result", "call_id": "c", "result": "x"}], "input")


def test_parts_of_an_answer_become_steps_of_their_kind():
    answer = Answer()
    for part in (Part(text="Hm", thought=True), Part(text="A "), Part(text="b"), Part(inline_data=Blob("image/png", b"x")), Part(text="c")):
        answer.add(part)
    answer.add(Part(function_call=FunctionCall("", "weather", {"city": "Rome"})))
    thought, output, call = answer.steps
    assert thought == {"type": "thought", "summary": [{"type": "text", "text": "Hm"}]}
    picture = {"type": "image", "data": base64.b64encode(b"x").decode(), "mime_type": "image/png"}
    assert output == {"type": "model_output", "content": [{"type": "text", "text": "A b"}, picture, {"type": "text", "text": "c"}]}
    assert (call["name"], call["arguments"], bool(call["id"])) == ("weather", {"city": "Rome"}, True)


def test_settings_of_an_interaction_are_those_of_generate_content():
    data = {
        "system_instruction": "Be brief",
        "tools": [{"type": "function", "name": "weather", "parameters": {"type": "object"}}, {"type": "google_maps"}],
        "generation_config": {
            "seed": 7,
            "top_p": 0.5,
            "thinking_level": "xhigh",
            "tool_choice": {"allowed_tools": {"mode": "any", "tools": ["weather"]}},
        },
        "response_format": [{"type": "text", "mime_type": "application/json", "schema": {"type": "boolean"}}, {"type": "image"}],
        "safety_settings": [{"type": "hate_speech", "threshold": "block_none"}],
    }
    asked, ignored = generate_request(parse(CreateInteraction, data)[0], ())
    config = asked.generation_config
    assert asked.system_instruction.parts[0].text == "Be brief"
    assert [declared.name for declared in asked.tools[0].function_declarations] == ["weather"]
    assert asked.tools[0].function_declarations[0].parameters_json_schema == {"type": "object"}
    assert asked.tool_config.function_calling_config.mode == CallingMode.ANY
    assert asked.tool_config.function_calling_config.allowed_function_names == ("weather",)
    assert (config.seed, config.top_p, config.thinking_config.thinking_level.name) == (7, 0.5, "HIGH")
    assert (config.response_mime_type, config.response_json_schema) == ("application/json", {"type": "boolean"})
    assert config.response_modalities == (ResponseModality.TEXT, ResponseModality.IMAGE)
    assert [(one.category, one.threshold) for one in asked.safety_settings] == [
        (HarmCategory.HARM_CATEGORY_HATE_SPEECH, HarmBlockThreshold.BLOCK_NONE)
    ]
    assert ignored == ["tools[1] of type 'google_maps'"]


def test_tools_of_the_server_are_those_of_generate_content():
    data = {
        "tools": [
            {"type": "function", "name": "weather"},
            {"type": "google_search", "search_types": ["web_search", "image_search"]},
            {"type": "url_context"},
            {"type": "file_search", "file_search_store_names": ["fileSearchStores/a"], "top_k": 3, "metadata_filter": "a = 1"},
            {"type": "code_execution"},
        ]
    }
    asked, ignored = generate_request(parse(CreateInteraction, data)[0], ())
    _, search, pages, files, code = asked.tools
    assert (search.google_search, pages.url_context, code.code_execution) == (GoogleSearch(), UrlContext(), {})
    assert files.file_search == FileSearch(("fileSearchStores/a",), 3, "a = 1")
    assert asked.tool_config.include_server_side_tool_invocations and ignored == ["tools[1].search_types"]


def test_a_schema_by_itself_is_a_response_format():
    asked = parse(CreateInteraction, {"response_format": {"type": "object", "properties": {}}})[0]
    config = generate_request(asked, ())[0].generation_config
    assert (config.response_mime_type, config.response_json_schema) == ("application/json", {"type": "object", "properties": {}})


def test_a_drawn_picture_is_an_image_of_the_answer(tmp_path):
    with serving(tmp_path, model=small_model("<draw>")) as whole:
        client = connected(whole)
        drawn = ask(client.interactions, response_modalities=["image"])
    assert drawn.output_image.mime_type == "image/png"
    assert PIL.Image.open(io.BytesIO(base64.b64decode(drawn.output_image.data))).size == (6, 4)
