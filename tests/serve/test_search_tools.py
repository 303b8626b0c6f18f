"""googleSearch, fileSearch and urlContext through the official client and a small real model, which is held to a sentence by an enum where
an answer has to say something."""

import contextlib
import http.server
import io
import json
import os
import threading
import warnings

import httpx
import pytest
from google import genai
from google.genai import types
from stored_server import until
from websockets.sync.client import connect
from whole_server import serving

from pollux.content import Content, Text
from pollux.serve.access import Rules
from pollux.serve.fetch import FetchLimits
from pollux.serve.retrieval.chunks import MAX_CHUNKS
from pollux.serve.server import Settings
from pollux.serve.service import Searched
from pollux.serve.tools.url_context import UrlContext, urls

FACT = "The big red circle is left of the small blue star."
OTHER = "Penguins swim in cold water and never fly."


def ask(client, contents, tool, says="", model="small", **config):
    """The first candidate of an answer; says: what it is held to."""
    if says:
        config |= {"response_mime_type": "text/x.enum", "response_schema": {"type": "STRING", "enum": [says]}}
    config = {"tools": [tool], "max_output_tokens": 120, **config}
    return client.models.generate_content(model=model, contents=contents, config=config).candidates[0]


def checked(candidate):
    """The texts of the segments with the chunks that they name; their offsets are right."""
    text, grounding = candidate.content.parts[0].text, candidate.grounding_metadata
    found = []
    for support in grounding.grounding_supports or []:
        segment = support.segment
        assert text.encode()[segment.start_index or 0 : segment.end_index].decode() == segment.text
        assert len(support.confidence_scores) == len(support.grounding_chunk_indices)
        found.append((segment.text, [grounding.grounding_chunks[i] for i in support.grounding_chunk_indices]))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("tools")


@pytest.fixture(scope="module")
def docs(place):
    (place / "docs" / "deep").mkdir(parents=True)
    (place / "docs" / "shapes.md").write_text(f"# Shapes\n\n{FACT}\n")
    (place / "docs" / "deep" / "penguins.html").write_text(f"<title>Penguins</title><script>{FACT}</script><p>{OTHER}</p>")
    (place / "docs" / "broken.json").write_text("{")
    (place / "docs" / ".hidden.txt").write_text("a secret word")
    (place / "secret.txt").write_text("a secret word")
    os.symlink(place / "secret.txt", place / "docs" / "link.txt")
    return place / "docs"


@pytest.fixture(scope="module")
def whole(place, docs):
    searched = Searched(docs, "https://docs.example.org/")
    with serving(place / "data", settings=Settings(fetch=FetchLimits()), searched=searched) as whole:
        until(lambda: len(whole.service.search.search("circle penguins", 10)) == 2)
        yield whole


@pytest.fixture
def client(whole):
    return genai.Client(api_key="any", http_options={"base_url": whole.url})


def test_a_searched_answer_points_into_the_passages_it_rests_on(client):
    said = f"{FACT} Nobody knows what elephants had for breakfast yesterday."
    candidate = ask(client, "where is the circle", {"google_search": {}}, said)
    assert candidate.content.parts[0].text == said
    assert candidate.grounding_metadata.web_search_queries == ["where is the circle"]
    [(text, [chunk])] = checked(candidate)
    assert text == FACT and chunk.web.title == "Shapes"
    assert chunk.web.uri == "https://docs.example.org/shapes.md#:~:text=Shapes,the%20small%20blue%20star."


def test_what_was_found_is_read_and_counted(client, whole):
    config = types.GenerateContentConfig(tools=[{"google_search": {}}], max_output_tokens=2)
    used = client.models.generate_content(model="small", contents="circle", config=config).usage_metadata
    assert used.tool_use_prompt_token_count > len(FACT.split())
    assert used.total_token_count == used.prompt_token_count + used.tool_use_prompt_token_count + used.candidates_token_count
    plain = client.models.generate_content(model="small", contents="circle", config={"max_output_tokens": 2}).usage_metadata
    assert used.prompt_token_count == plain.prompt_token_count


def test_a_stream_ends_with_the_grounding(client):
    config = {"tools": [{"google_search": {}}], "max_output_tokens": 20}
    chunks = list(client.models.generate_content_stream(model="small", contents="star", config=config))
    given = [chunk.candidates[0].grounding_metadata for chunk in chunks]
    assert given[-1].web_search_queries == ["star"] and not any(given[:-1])


def test_a_live_answer_says_what_it_rests_on(whole):
    address = whole.url.replace("http", "ws") + "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
    with connect(address) as socket:
        setup = {"model": "models/small", "tools": [{"googleSearch": {}}], "generationConfig": {"maxOutputTokens": 5}}
        socket.send(json.dumps({"setup": setup}))
        socket.recv()
        turn = {"role": "user", "parts": [{"text": "circle"}]}
        socket.send(json.dumps({"clientContent": {"turns": [turn], "turnComplete": True}}))
        told = [{}]
        while not told[-1].get("turnComplete"):
            told.append(json.loads(socket.recv(60))["serverContent"])
    [found] = [one["groundingMetadata"] for one in told if "groundingMetadata" in one]
    assert found["webSearchQueries"] == ["circle"] and found["groundingChunks"]


def test_the_old_name_of_the_tool_searches_too(client):
    candidate = ask(client, "penguins", {"google_search_retrieval": {}}, OTHER)
    [(_, [chunk])] = checked(candidate)
    assert chunk.web.uri.startswith("https://docs.example.org/deep/penguins.html#")


def test_changed_files_are_read_again_and_nothing_outside_is(client, docs, whole):
    assert not any("secret" in one.chunk.text for one in whole.service.search.search("secret word", 10))
    new = "Walrus tusks grow for all of their lives."
    (docs / "walrus.txt").write_text(new)
    [(_, [chunk])] = checked(ask(client, "walrus tusks", {"google_search": {}}, new))
    assert chunk.web.title == "walrus.txt"
    (docs / "walrus.txt").write_text("Something else entirely stands here now.")
    assert checked(ask(client, "walrus tusks", {"google_search": {}}, new)) == []
    (docs / "walrus.txt").unlink()
    assert not any(one.title == "walrus.txt" for one in whole.service.search.search("something else", 10))


def test_a_range_of_time_keeps_older_files_out(client, docs):
    os.utime(docs / "shapes.md", (1e9, 1e9))
    period = {"start_time": "2020-01-01T00:00:00Z", "end_time": "2100-01-01T00:00:00Z"}
    candidate = ask(client, "circle", {"google_search": {"time_range_filter": period}}, FACT)
    assert [chunk.web.title for chunk in candidate.grounding_metadata.grounding_chunks] == ["Penguins"] and checked(candidate) == []


def test_passages_leave_room_for_the_answer(client, docs, whole):
    (docs / "long.txt").write_text("A lengthy tale of circles. " * 400)
    try:
        candidate = ask(client, "a lengthy tale " * 20, {"google_search": {}}, max_output_tokens=50)
        assert candidate.token_count == 50 and len(candidate.grounding_metadata.grounding_chunks) >= 1
    finally:
        (docs / "long.txt").unlink()


@pytest.fixture
def store(client):
    made = client.file_search_stores.create(config={"display_name": "facts"})
    for text, kind in ((FACT, "shape"), (OTHER, "animal")):
        config = {"mime_type": "text/plain", "display_name": kind, "custom_metadata": [{"key": "kind", "string_value": kind}]}
        operation = client.file_search_stores.upload_to_file_search_store(
            file_search_store_name=made.name, file=io.BytesIO(text.encode()), config=config
        )
        until(lambda operation=operation: client.operations.get(operation).done)
    yield made
    client.file_search_stores.delete(name=made.name, config={"force": True})


def test_an_answer_points_into_the_users_own_documents(client, store):
    candidate = ask(client, "the circle?", {"file_search": {"file_search_store_names": [store.name]}}, FACT)
    [(_, [chunk])] = checked(candidate)
    context = chunk.retrieved_context
    assert (context.text, context.title, context.file_search_store) == (FACT, "shape", store.name)
    assert client.file_search_stores.documents.get(name=context.uri).display_name == "shape"
    assert [(one.key, one.string_value) for one in context.custom_metadata] == [("kind", "shape")]
    assert candidate.grounding_metadata.web_search_queries is None


def test_file_search_keeps_to_the_filter_and_the_number(client, store):
    names = [store.name]
    for tool, titles in (
        ({"metadata_filter": 'kind = "animal"'}, ["animal"]),
        ({"top_k": 1}, ["shape"]),
        ({"metadata_filter": "kind = absent"}, None),
    ):
        found = ask(client, "the red circle?", {"file_search": {"file_search_store_names": names, **tool}}).grounding_metadata
        chunks = found and found.grounding_chunks
        assert (chunks and [chunk.retrieved_context.title for chunk in chunks]) == titles


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ({"file_search_store_names": ["fileSearchStores/absent"]}, "403 PERMISSION_DENIED.*not exist"),
        ({"file_search_store_names": []}, "400 INVALID_ARGUMENT.*fileSearchStoreNames"),
        ({"file_search_store_names": ["x' OR 1=1"]}, "400 INVALID_ARGUMENT"),
        ({"file_search_store_names": ["fileSearchStores/a"], "top_k": 0}, "400 INVALID_ARGUMENT.*topK"),
        ({"file_search_store_names": ["fileSearchStores/a"], "metadata_filter": "a ="}, "400 INVALID_ARGUMENT.*ends where a value"),
    ],
)
def test_a_file_search_that_cannot_be_done_is_refused(client, tool, message):
    with pytest.raises(genai.errors.ClientError, match=message):
        ask(client, "x", {"file_search": tool})


def test_a_store_of_another_key_is_not_searched(tmp_path):
    with serving(tmp_path, Rules(keys_required=True)) as running:
        ours, theirs = (genai.Client(api_key=running.keys.add(n), http_options={"base_url": running.url}) for n in ("ours", "theirs"))
        store = ours.file_search_stores.create()
        tool = {"file_search": {"file_search_store_names": [store.name]}}
        assert ask(ours, "x", tool, max_output_tokens=1)
        with pytest.raises(genai.errors.ClientError, match="403 PERMISSION_DENIED"):
            ask(theirs, "x", tool, max_output_tokens=1)


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        pages = {
            "/fact": (200, "text/html", f"<title>Facts</title><p>{FACT}</p>"),
            "/pay": (402, "text/html", "pay"),
            "/zip": (200, "application/zip", "PK"),
            "/long": (200, "text/markdown", "a\n\n# b\n\n" * (MAX_CHUNKS + 1)),
        }
        status, kind, text = pages.get(self.path, (404, "text/plain", "nothing"))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_pages_that_the_prompt_names_are_read(client, whole, monkeypatch):
    open_to_all = UrlContext(FetchLimits(seconds=5), allowed=lambda address: True)
    monkeypatch.setattr(whole.service.server, "tools", {**whole.service.server.tools, "url_context": open_to_all})
    with site() as base:
        candidate = ask(client, f"see ({base}/fact), {base}/pay {base}/zip {base}/long and {base}/gone.", {"url_context": {}}, FACT)
    told = [(one.retrieved_url.removeprefix(base), one.url_retrieval_status.name) for one in candidate.url_context_metadata.url_metadata]
    names = {"/fact": "SUCCESS", "/pay": "PAYWALL", "/zip": "ERROR", "/long": "ERROR", "/gone": "ERROR"}
    assert told == [(path, f"URL_RETRIEVAL_STATUS_{name}") for path, name in names.items()]
    [(text, [chunk])] = checked(candidate)
    assert text == FACT and chunk.web.title == "Facts" and chunk.web.uri == f"{base}/fact"


def interaction(client, content, says, *tools, **settings):
    """An interaction that is held to a sentence."""
    warnings.simplefilter("ignore")  # the client calls its own fields deprecated
    form = {"type": "text", "mime_type": "text/x.enum", "schema": {"type": "string", "enum": [says]}}
    return client.interactions.create(model="small", input=content, tools=list(tools), response_format=form, **settings)


def cited(step):
    """The bytes of a text that citations are about, with the citations."""
    [text] = step.content
    return [(text.text.encode()[one.start_index : one.end_index].decode(), one) for one in text.annotations]


def test_an_interaction_tells_what_was_looked_up_and_what_its_text_rests_on(client, whole, store, monkeypatch):
    open_to_all = UrlContext(FetchLimits(seconds=5), allowed=lambda address: True)
    monkeypatch.setattr(whole.service.server, "tools", {**whole.service.server.tools, "url_context": open_to_all})
    said = f"Schön! {FACT}"
    made = interaction(client, "where is the circle", said, {"type": "google_search"})
    call, result, text = made.steps
    assert (call.type, call.arguments.queries, result.type, result.call_id) == (
        "google_search_call",
        ["where is the circle"],
        "google_search_result",
        call.id,
    )
    [(sentence, citation)] = cited(text)
    assert (sentence, citation.type, citation.title) == (FACT, "url_citation", "Shapes")
    assert citation.url.startswith("https://docs.example.org/shapes.md#")
    [count] = made.usage.grounding_tool_count
    assert (count.type, count.count) == ("google_search", 1) and made.usage.total_tool_use_tokens > 0

    with site() as base:
        call, result, text = interaction(client, f"{base}/fact {base}/gone", FACT, {"type": "url_context"}).steps
    assert call.arguments.urls == [f"{base}/fact", f"{base}/gone"] == [one.url for one in result.result]
    assert [one.status for one in result.result] == ["success", "error"]
    assert [(sentence, citation.url) for sentence, citation in cited(text)] == [(FACT, f"{base}/fact")]

    tool = {"type": "file_search", "file_search_store_names": [store.name], "metadata_filter": 'kind = "shape"', "top_k": 1}
    call, result, text = interaction(client, "the circle?", FACT, tool).steps
    assert (call.type, result.type, result.call_id) == ("file_search_call", "file_search_result", call.id)
    [(sentence, citation)] = cited(text)
    assert (sentence, citation.type, citation.file_name, citation.source) == (FACT, "file_citation", "shape", FACT)
    assert citation.custom_metadata == {"kind": "shape"}


def test_citations_are_told_behind_the_text_and_the_next_turn_looks_anew(client):
    events = list(interaction(client, "where is the circle", FACT, {"type": "google_search"}, stream=True))
    deltas = [(event.index, event.delta.type) for event in events if event.event_type == "step.delta"]
    assert [kind for _, kind in deltas[:2]] == ["google_search_call", "google_search_result"]
    assert deltas[-1] == (2, "text_annotation_delta") and {kind for _, kind in deltas[2:-1]} == {"text"}
    [told] = [event.delta for event in events if event.event_type == "step.delta" and event.delta.type == "text_annotation_delta"]
    made = client.interactions.get(id=events[0].interaction.id)
    assert told.annotations == made.steps[2].content[0].annotations
    after = [event.event_id for event in client.interactions.get(id=made.id, stream=True, last_event_id=events[-3].event_id)]
    assert after == [event.event_id for event in events[-2:]]  # the stop and the end, but not the citation again
    again = interaction(client, "penguins", OTHER, {"type": "google_search"}, previous_interaction_id=made.id)
    assert again.steps[0].arguments.queries == ["penguins"] and cited(again.steps[2])[0][0] == OTHER
    steps = [{"type": "user_input", "content": [{"type": "text", "text": "circle?"}]}, *(step.model_dump() for step in made.steps)]
    asked = [*steps, {"type": "user_input", "content": [{"type": "text", "text": "penguins"}]}]
    assert interaction(client, asked, OTHER, {"type": "google_search"}).steps[0].arguments.queries == ["penguins"]


def test_private_addresses_are_never_fetched(client):
    with site() as base:
        candidate = ask(client, f"what says {base}/fact", {"url_context": {}})
    [told] = candidate.url_context_metadata.url_metadata
    assert told.url_retrieval_status.name == "URL_RETRIEVAL_STATUS_UNSAFE" and candidate.grounding_metadata is None


def test_tools_that_are_not_enabled_are_ignored_and_the_client_is_told(tmp_path):
    with serving(tmp_path) as running:
        body = {
            "contents": [{"parts": [{"text": "x"}]}],
            "tools": [{"googleSearch": {}}, {"urlContext": {}}],
            "generationConfig": {"maxOutputTokens": 1},
        }
        answer = httpx.post(f"{running.url}/v1beta/models/small:generateContent", json=body, timeout=60)
        assert answer.status_code == 200 and "groundingMetadata" not in answer.json()["candidates"][0]
        assert "tools[0].googleSearch, tools[1].urlContext" in answer.headers["warning"]


def test_urls_are_found_in_what_the_user_said():
    turns = [
        Content("user", (Text("see https://a.example/x?y=(1), http://b.example/."), Text("HTTPS://c.example/ü"))),
        Content("model", (Text("https://model.example"),)),
        Content(
            "user",
            (Text("<https://a.example/x?y=(1)> ftp://d.example https:// [it](https://e.example/owl_(bird)), 见https://f.example/页。"),),
        ),
    ]
    assert urls(turns) == [
        *("https://a.example/x?y=(1)", "http://b.example/", "HTTPS://c.example/ü", "https://e.example/owl_(bird)", "https://f.example/页"),
    ]
    assert len(urls([Content("user", (Text(" ".join(f"http://x/{i}" for i in range(30))),))])) == 20
