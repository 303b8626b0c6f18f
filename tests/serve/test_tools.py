"""Tools of the server by their interface: one that finds something before the answer, and ones that hang, fail or find nothing."""

import threading

import httpx
import pytest
from calling_model import NOTE, calling_model, says, user
from google import genai
from small_model import running
from stored_server import serving
from watched_engine import WatchedEngine

from pollux.content import Document
from pollux.serve.server import Served, Settings
from pollux.serve.tools import rounds
from pollux.serve.tools.code_execution import DECLARATION
from pollux.serve.tools.tool import Context, Found, Outcome, ServerTool, Source
from pollux.tokens.config import TokensConfig
from pollux.tokens.interleave import encode

SKY = {"contents": [{"role": "user", "parts": [{"text": "the sky?"}]}], "generationConfig": {"temperature": 0}}
SEARCH = SKY | {"tools": [{"googleSearch": {}}]}
RUN = {"contents": [{"parts": [{"text": "fail"}]}], "tools": [{"codeExecution": {}}], "generationConfig": {"temperature": 0}}


class Notes(ServerTool):
    """Reads a note before every answer, and tells what it said and what the answer was."""

    def open(self, asked, owner):
        self.asked = []
        return self

    def before(self, turns, *room):
        self.asked.append([part.text for turn in turns for part in turn.parts])
        return Context(NOTE, Found((Source("note:1", "a note", NOTE),), ("sky",)))

    def after(self, text, found):
        (source,) = found.sources
        return {
            "grounding_metadata": {"webSearchQueries": list(found.queries), "groundingChunks": [{"web": {"uri": source.uri}}], "text": text}
        }


class Runs(ServerTool):
    """Answers calls of the code function by what it was made with."""

    declarations = (DECLARATION,)

    def __init__(self, work, seconds=60.0):
        self.work, self.seconds = work, seconds

    def open(self, asked, owner):
        return self

    def run(self, call, leave):
        return self.work(leave)


@pytest.fixture(scope="module")
def engine():
    with running(calling_model()) as engine:
        yield WatchedEngine(engine)


@pytest.fixture
def served(engine, tmp_path):
    """Makes servers with tools."""

    def make(**tools):
        return serving(tmp_path, {"calls": Served("calls", calling_model(), engine)}, Settings(timeout=120.0), tools=tools)

    engine.renew()
    return make


def ask(server, body, method="generateContent", **more):
    return httpx.post(f"{server.url}/v1beta/models/calls:{method}", json=body, timeout=120, **more)


def test_what_is_found_before_the_answer_is_read_counted_and_told(served, engine):
    notes = Notes()
    with served(google_search=notes) as server:
        answer = ask(server, SEARCH).json()
        alone = ask(server, {"generateContentRequest": SKY}, "countTokens").json()["totalTokens"]
        counted = ask(server, {"generateContentRequest": SEARCH}, "countTokens").json()["totalTokens"]
        assert notes.asked == []  # nothing is looked up for a count
        client = genai.Client(api_key="any", http_options={"base_url": server.url})
        config = {"tools": [{"google_search": {}}], "temperature": 0}
        chunks = list(client.models.generate_content_stream(model="calls", contents="the sky?", config=config))
    assert notes.asked == [["the sky?"]]
    whole = encode(Document((user(NOTE), user("the sky?"), says("It is green."))), calling_model().vocabulary, TokensConfig())
    candidate, used = answer["candidates"][0], answer["usageMetadata"]
    assert candidate["content"]["parts"] == [{"text": "It is green."}]
    assert candidate["groundingMetadata"] == {
        "webSearchQueries": ["sky"],
        "groundingChunks": [{"web": {"uri": "note:1"}}],
        "text": "It is green.",
    }
    assert used["promptTokenCount"] == alone == counted and used["totalTokenCount"] == len(whole)
    assert used["promptTokenCount"] + used["toolUsePromptTokenCount"] == len(engine.jobs[0].request.prompt)
    assert "".join(chunk.text for chunk in chunks) == "It is green."
    told = [chunk.candidates[0].grounding_metadata for chunk in chunks]
    assert told[:-1] == [None] * (len(chunks) - 1) and told[-1].web_search_queries == ["sky"]


def test_a_tool_that_is_not_enabled_is_ignored_or_refused(served):
    with served() as server:
        answer = ask(server, SEARCH)
        assert answer.status_code == 200 and "tools[0].googleSearch" in answer.headers["warning"]
        assert ask(server, RUN).status_code == 400


def test_a_tool_that_hangs_is_not_waited_for(served, engine, monkeypatch):
    monkeypatch.setattr(rounds, "GRACE", 0.1)
    over = threading.Event()
    try:
        with served(code_execution=Runs(lambda leave: over.wait(), seconds=0.1)) as server:
            answer = ask(server, RUN)
        assert answer.json()["candidates"][0]["finishReason"] == "STOP"
        assert '{"error":"no result after 0.1 seconds"}' in calling_model().vocabulary.decode(engine.jobs[1].request.prompt.ids)
    finally:
        over.set()


@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent?alt=sse"])
def test_the_deadline_holds_for_tools_and_they_hear_of_it(served, method):
    begun, heard = threading.Event(), threading.Event()

    def work(leave):
        begun.set()
        assert leave.seconds <= 10 and leave.ended.wait(60)
        heard.set()
        return Outcome({})

    with served(code_execution=Runs(work)) as server:
        answer = ask(server, RUN, method, headers={"X-Server-Timeout": "10"})
        assert "DEADLINE_EXCEEDED" in answer.text
        if begun.is_set():  # the time may have been over before, where the model was slow
            assert "a tool of the server was still at work" in answer.text and heard.wait(60)


def test_a_tool_that_breaks_is_an_error_and_the_server_goes_on(served, engine):
    def work(leave):
        raise RuntimeError("a secret of the server")

    with served(code_execution=Runs(work)) as server:
        answer = ask(server, RUN)
        assert answer.status_code == 500 and "secret" not in answer.text
        stream = ask(server, RUN, "streamGenerateContent?alt=sse").text
        assert '"status":"INTERNAL"' in stream and "secret" not in stream
        assert ask(server, {"contents": [{"parts": [{"text": "hello"}]}], "generationConfig": {"temperature": 0}}).status_code == 200
    assert engine.stats().rows == 0
