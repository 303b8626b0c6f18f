"""Messages of live sessions one by one, over a plain websocket: calls and their results, and what is wrong."""

import contextlib
import json

import numpy as np
import pytest
import websockets
from small_model import small_model
from stored_server import serving
from websockets.sync.client import connect

from pollux.content import Content, FunctionCall, FunctionResponse, Text
from pollux.generate.answer import Result, Usage
from pollux.generate.requests import Job, Piece
from pollux.serve.server import Served
from pollux.tokens.interleave import encode_prompt


class Scripted:
    """An engine that says what it is told to."""

    def __init__(self, *answers):
        self.answers, self.requests = list(answers), []

    def submit(self, request, notify=None):
        self.requests.append(request)
        job, parts = Job(request, notify), self.answers.pop(0)
        nothing = np.zeros(0, np.int32)
        job.add(Piece(0, parts, (), (), (), "stop", Result(parts, nothing, nothing, "stop", Usage({"text": 1}, {"text": 1}))))
        job.end()
        job.tell()
        return job


@contextlib.contextmanager
def scripted(folder, *answers):
    """The engine, and an open websocket to its server."""
    engine = Scripted(*answers)
    with serving(folder, {"small": Served("small", small_model(), engine)}) as running:
        with connect(
            f"ws{running.url.removeprefix('http')}/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
        ) as socket:
            yield engine, socket


def told(socket, message):
    socket.send(json.dumps(message))


def heard(socket):
    return json.loads(socket.recv(timeout=30))


CALLS = (FunctionCall("weather", {"city": "Rome"}), FunctionCall("weather", {"city": "Bern"}))
TOOLS = [{"functionDeclarations": [{"name": "weather", "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}}]}]


def encode(turns):
    model = small_model()
    return encode_prompt(turns, model.vocabulary, model.tokens_config, model.codec, model.limits).ids.tolist()


def all_heard(socket):
    """The text of the messages up to the one that says that it is complete."""
    text = ""
    while "modelTurn" in (content := heard(socket)["serverContent"]):
        text += "".join(part["text"] for part in content["modelTurn"]["parts"])
    assert content == {"generationComplete": True}
    return text


def test_calls_wait_for_their_results(tmp_path):
    with scripted(tmp_path, (Text("Let me see. "), *CALLS), (Text("Sunny."),)) as (engine, socket):
        told(socket, {"setup": {"model": "models/small", "tools": TOOLS}})
        assert heard(socket)["setupComplete"]["sessionId"]
        told(socket, {"clientContent": {"turns": [{"role": "user", "parts": [{"text": "weather?"}]}], "turnComplete": True}})
        assert heard(socket)["serverContent"]["modelTurn"]["parts"] == [{"text": "Let me see. "}]
        calls = heard(socket)["toolCall"]["functionCalls"]
        assert [(call["name"], call["args"]) for call in calls] == [("weather", {"city": "Rome"}), ("weather", {"city": "Bern"})]
        assert len({call["id"] for call in calls}) == 2
        results = [{"id": call["id"], "name": "weather", "response": {"sky": call["args"]["city"]}} for call in reversed(calls)]
        told(socket, {"tool_response": {"function_responses": results[:1]}})
        told(socket, {"toolResponse": {"functionResponses": results[1:]}})
        assert all_heard(socket) == "Sunny."
        assert heard(socket)["serverContent"] == {"turnComplete": True}
    turns = [
        Content("user", (Text("weather?"),)),
        Content("model", (Text("Let me see. "), *CALLS)),
        Content("tool", tuple(FunctionResponse("weather", {"sky": city}) for city in ("Rome", "Bern"))),
    ]
    bare = encode(turns)[1:]
    assert engine.requests[1].prompt.ids.tolist()[-len(bare) :] == bare  # before it stand the declared functions


def test_calls_that_nobody_waits_for_any_more_are_taken_back(tmp_path):
    with scripted(tmp_path, CALLS[:1], (Text("Never mind."),)) as (_, socket):
        told(socket, {"setup": {"model": "models/small", "tools": TOOLS}})
        heard(socket)
        told(socket, {"clientContent": {"turns": [{"parts": [{"text": "weather?"}]}], "turnComplete": True}})
        call = heard(socket)["toolCall"]["functionCalls"][0]
        told(socket, {"realtimeInput": {"text": "forget it"}})
        assert heard(socket) == {"toolCallCancellation": {"ids": [call["id"]]}}
        assert all_heard(socket) == "Never mind."
        told(socket, {"toolResponse": {"functionResponses": [{"id": call["id"], "response": {}}]}})
        while "serverContent" in (message := next_or_end(socket)):
            pass
        assert message == {"code": 1007, "reason": f"there is no call with the id '{call['id']}' that waits for its result"}


def next_or_end(socket):
    try:
        return heard(socket)
    except websockets.ConnectionClosed as closed:
        return {"code": closed.rcvd.code, "reason": closed.rcvd.reason}


SETUP = {"setup": {"model": "small"}}
NO_PICTURE = {"parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]}


def detecting(**settings):
    return {"setup": {"model": "small", "realtimeInputConfig": {"automaticActivityDetection": settings}}}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (["{"], "the body is not JSON"),
        ([detecting(prefix_padding_ms=-60)], "prefixPaddingMs is -60 but must be between 0 and 300000"),
        ([detecting(silence_duration_ms=300_001)], "silenceDurationMs is 300001 but must be"),
        ([{"clientContent": {}}], "the first message must have a setup"),
        ([SETUP, SETUP], "setup must come once"),
        ([SETUP, {}], "a message must have clientContent"),
        ([SETUP, {"realtimeInput": {"activityStart": {}}}], "need automaticActivityDetection.disabled"),
        ([SETUP, {"realtimeInput": {"audio": {"mimeType": "audio/wav", "data": "AAAA"}}}], "must come as audio/pcm"),
        ([SETUP, {"realtimeInput": {"audio": {"mimeType": "audio/pcm;rate=1", "data": "AAAA"}}}], "must be from 8000"),
        ([SETUP, {"realtimeInput": {"video": {"mimeType": "video/mp4", "data": "AAAA"}}}], "takes image/* and audio/pcm"),
        ([SETUP, {"clientContent": {"turns": [NO_PICTURE], "turnComplete": True}}], "image"),
    ],
)
def test_what_is_wrong_ends_the_session_with_its_reason(tmp_path, messages, reason):
    with scripted(tmp_path) as (_, socket):
        for message in messages:
            socket.send(message if isinstance(message, str) else json.dumps(message))
        while "setupComplete" in (end := next_or_end(socket)):
            pass
        assert end["code"] == 1007 and reason in end["reason"]
