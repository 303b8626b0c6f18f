"""Keys, limits, and pages of other origins, against a whole server; what it counts and what it logs."""

import json
import logging
import re

import httpx
import openai
import pytest
import websockets.exceptions
import websockets.sync.client
from google import genai
from google.genai import errors, types
from small_model import small_model
from stored_server import until
from whole_server import serving

from pollux.serve.access import Rules, host_name
from pollux.serve.fetch import FetchLimits
from pollux.serve.logs import JsonLines
from pollux.serve.server import Settings

KEYED = Rules(keys_required=True, requests_per_minute=1000)
OPEN = Rules(keys_required=False, hosts=frozenset({"localhost", "127.0.0.1", "::1"}))
PAGE = Rules(keys_required=False, hosts=OPEN.hosts, origins=("https://page.example",))


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("keyed"), KEYED) as whole:
        yield whole


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("page"), PAGE) as whole:
        yield whole


@pytest.fixture(scope="module")
def fetching(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("fetching"), settings=Settings(fetch=FetchLimits())) as whole:
        yield whole


@pytest.fixture(scope="module")
def key(keyed):
    return keyed.keys.add("laptop")


def gemini(server, key, **options):
    return genai.Client(api_key=key, http_options={"base_url": server.url, **options})


def say(client, text="a red circle", tokens=4):
    return client.models.generate_content(model="pollux", contents=text, config={"max_output_tokens": tokens, "temperature": 0})


def post(server, path="/v1beta/models/pollux:countTokens", **keywords):
    return httpx.post(server.url + path, json={"contents": [{"parts": [{"text": "hello"}]}]}, timeout=60, **keywords)


def test_a_key_lets_either_client_in(keyed, key):
    expected = small_model().generate("a red circle", temperature=0, max_output_tokens=4).text
    assert say(gemini(keyed, key)).text == expected
    with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=key) as client:
        messages = [{"role": "user", "content": "a red circle"}]
        answer = client.chat.completions.create(model="pollux", messages=messages, max_tokens=4, temperature=0)
    assert answer.choices[0].message.content == expected
    assert post(keyed, params={"key": key}).status_code == 200


def test_without_a_key_or_with_a_wrong_one_nobody_is_let_in(keyed):
    with pytest.raises(errors.ClientError, match="API key not valid") as caught:
        say(gemini(keyed, "wrong"))
    assert caught.value.code == 400 and caught.value.details["error"]["details"][0]["reason"] == "API_KEY_INVALID"
    with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="wrong") as client, pytest.raises(openai.AuthenticationError, match="key"):
        client.models.list()
    refused = post(keyed)
    assert (refused.status_code, refused.json()["error"]["status"]) == (403, "PERMISSION_DENIED")
    for path in ("/metrics", "/v1beta/models", "/v1beta/files", "/nothing"):
        assert httpx.get(keyed.url + path).status_code == 403


def test_how_the_server_is_may_be_asked_without_a_key(keyed):
    assert httpx.get(f"{keyed.url}/healthz").status_code == httpx.get(f"{keyed.url}/readyz").status_code == 200


def test_a_removed_key_is_refused_at_once(keyed):
    key = keyed.keys.add("short-lived")
    assert post(keyed, headers={"x-goog-api-key": key}).status_code == 200
    keyed.keys.remove("short-lived")
    assert post(keyed, headers={"x-goog-api-key": key}).status_code == 400


def test_files_of_one_key_are_not_seen_by_another(keyed, key, tmp_path):
    (tmp_path / "note.txt").write_text("hello")
    mine, other = gemini(keyed, key), gemini(keyed, keyed.keys.add("other"))
    file = mine.files.upload(file=tmp_path / "note.txt")
    assert [one.name for one in mine.files.list()] == [file.name] and list(other.files.list()) == []
    with pytest.raises(errors.ClientError, match="permission"):
        other.files.get(name=file.name)


def test_a_key_may_ask_only_so_often(keyed):
    headers = {"x-goog-api-key": keyed.keys.add("eager", requests_per_minute=3)}
    answers = [post(keyed, headers=headers) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    error = answers[-1].json()["error"]
    assert error["status"] == "RESOURCE_EXHAUSTED" and re.fullmatch(r"\d+s", error["details"][0]["retryDelay"])
    assert answers[-1].headers["retry-after"] + "s" == error["details"][0]["retryDelay"]
    assert httpx.get(f"{keyed.url}/v1beta/models", headers=headers).status_code == 200  # looking is free
    spent = httpx.post(f"{keyed.url}/v1/chat/completions", headers={"Authorization": f"Bearer {headers['x-goog-api-key']}"}, json={})
    assert (spent.status_code, spent.json()["error"]["type"]) == (429, "rate_limit_error")


def test_a_key_may_read_and_write_only_so_many_tokens(keyed):
    client = gemini(keyed, keyed.keys.add("chatty", tokens_per_minute=20))
    used = say(client, tokens=16).usage_metadata.total_token_count
    assert used >= 20
    with pytest.raises(errors.ClientError, match="20 tokens a minute") as caught:
        say(client)
    assert caught.value.code == 429


def test_without_keys_an_address_may_ask_only_so_much(tmp_path):
    with serving(tmp_path, Rules(keys_required=False, requests_per_minute=3, tokens_per_minute=20)) as whole:
        say(gemini(whole, "any"), tokens=16)
        with pytest.raises(errors.ClientError, match="20 tokens a minute"):
            say(gemini(whole, "another"))


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "169.254.169.254", ""])
def test_a_foreign_name_for_a_loopback_server_is_refused(page, host):
    refused = post(page, headers={"Host": host})
    assert (refused.status_code, refused.json()["error"]["status"]) == (403, "PERMISSION_DENIED")


@pytest.mark.parametrize("host", ["localhost:5000", "LOCALHOST.", "127.0.0.1", "[::1]:8000"])
def test_the_names_of_this_machine_are_let_in(page, host):
    assert post(page, headers={"Host": host}).status_code == 200


def test_the_name_in_a_host_header_is_found():
    assert [host_name(host) for host in ("A.b:1", "a.b.", "[::1]:8", "[::1]", "")] == ["a.b", "a.b", "::1", "::1", ""]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_a_page_from_elsewhere_can_neither_write_nor_ask_to(page, origin):
    assert post(page, headers={"Origin": origin}).status_code == 403
    assert (
        httpx.options(f"{page.url}/v1beta/models", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}).status_code == 403
    )


@pytest.mark.parametrize(
    ("server", "options", "message"), [("page", {"origin": "https://evil.example"}, "may not use"), ("keyed", {}, "key")]
)
def test_websockets_are_refused_by_the_same_rules(server, options, message, request):
    address = request.getfixturevalue(server).url.replace("http", "ws") + "/ws/any"
    with pytest.raises(websockets.exceptions.InvalidStatus) as caught, websockets.sync.client.connect(address, **options):
        pass
    assert caught.value.response.status_code == 403 and message in caught.value.response.body.decode()


def test_pages_of_the_server_and_of_allowed_origins_are_let_in(page):
    own = post(page, headers={"Origin": page.url})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    allowed = post(page, headers={"Origin": "https://page.example"})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://page.example")
    asking = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-goog-api-key"}
    preflight = httpx.options(f"{page.url}/v1beta/models/pollux:generateContent", headers=asking)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, "https://page.example")
    assert "x-goog-api-key" in preflight.headers["access-control-allow-headers"]


@pytest.mark.parametrize("origin", ["page.example", "https://page.example/", "https://page.example/path", "ftp://page.example"])
def test_an_origin_is_written_without_a_path(origin):
    with pytest.raises(ValueError, match="origin"):
        Rules(keys_required=True, origins=(origin,))


def value(server, name, headers=(), **labels):
    """A sample of /metrics, 0 if it is not there."""
    for line in httpx.get(f"{server.url}/metrics", headers=dict(headers)).text.splitlines():
        match = re.fullmatch(r"(\w+)(?:{(.*)})? (\S+)", line)
        if match and match[1] == name and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', match[2] or "")).items():
            return float(match[3])
    return 0.0


def test_metrics_move_with_requests(page):
    route = "/v1/models/{model}:generateContent"

    def read():
        return {
            "requests": value(page, "pollux_requests_total", route=route, code="200", method="POST"),
            "seconds": value(page, "pollux_request_seconds_count", route=route),
            "read": value(page, "pollux_tokens_total", direction="in", modality="text"),
            "written": value(page, "pollux_tokens_total", direction="out", modality="text"),
            "first": value(page, "pollux_time_to_first_token_seconds_count", model="small"),
            "between": value(page, "pollux_time_between_tokens_seconds_count", model="small"),
            "jobs": value(page, "pollux_jobs_total", end="answered"),
        }

    before = read()
    client = gemini(page, "any", api_version="v1")
    used = [say(client, tokens=40).usage_metadata for _ in range(2)]
    until(lambda: read()["requests"] == before["requests"] + 2)
    moved = {name: number - before[name] for name, number in read().items()}
    assert moved.pop("between") >= 2
    expected = {"read": sum(one.prompt_token_count for one in used), "written": 80}
    assert moved == {"requests": 2, "seconds": 2, "first": 2, "jobs": 2, **expected}


def test_no_client_can_invent_labels(page):
    httpx.request("INVENTED", f"{page.url}/secret-name", headers={"x-goog-api-key": "secret-key"})
    httpx.get(f"{page.url}/v1/models/secret-model")
    text = httpx.get(f"{page.url}/metrics").text
    assert "secret" not in text and "INVENTED" not in text
    assert value(page, "pollux_requests_total", route="/v1/models/{model}", code="404") >= 1


class Lines(logging.Handler):
    """Keeps what the server logs."""

    def __init__(self):
        super().__init__()
        self.setFormatter(JsonLines())
        self.lines: list[str] = []

    def emit(self, record):
        self.lines.append(self.format(record))


@pytest.fixture
def lines(caplog):
    handler = Lines()
    loggers = [logging.getLogger("pollux.serve"), logging.getLogger("uvicorn.error")]
    for logger in loggers:
        logger.addHandler(handler)
    caplog.set_level(logging.INFO, "pollux.serve")
    yield handler.lines
    for logger in loggers:
        logger.removeHandler(handler)


def test_a_request_is_one_line_of_the_log(keyed, key, lines):
    used = say(gemini(keyed, key)).usage_metadata
    until(lambda: len(lines) >= 1)
    (line,) = map(json.loads, lines)
    assert line["method"] == "POST" and line["code"] == 200 and line["key"] == "laptop"
    assert line["route"] == "/v1/models/{model}:generateContent" and line["seconds"] > 0
    assert (line["prompt_tokens"], line["output_tokens"]) == (used.prompt_token_count, 4)
    assert 0 < line["first_token_seconds"] <= line["seconds"]


def test_the_log_holds_no_contents_keys_or_names(keyed, key, lines, tmp_path, monkeypatch):
    secret = "xylophone"
    (tmp_path / f"{secret}.txt").write_text(secret)
    client = gemini(keyed, key)
    file = client.files.upload(file=tmp_path / f"{secret}.txt", config={"display_name": secret})
    say(client, [file, f"{secret} {secret}"])
    post(keyed, f"/v1beta/models/{secret}:generateContent", params={"key": key})
    post(keyed, "/v1beta/models/pollux:generateContent", params={"key": secret})
    httpx.get(f"{keyed.url}/v1beta/files/{secret}", headers={"x-goog-api-key": key})

    def breaks(*arguments, **keywords):
        raise RuntimeError(secret)

    monkeypatch.setattr(keyed.service.server, "find", breaks)
    assert post(keyed, params={"key": key}).status_code == 500
    until(lambda: len(lines) >= 8 and any("Exception in ASGI application" in line for line in lines))
    assert any('"RuntimeError"' in line and "breaks" in line for line in lines)
    for hidden in (secret, key, file.name.removeprefix("files/")):
        assert not [line for line in lines if hidden in line]


def test_an_answer_carries_the_id_of_its_line(page, lines):
    answer = post(page)
    until(lambda: lines)
    assert json.loads(lines[0])["id"] == answer.headers["x-request-id"]


def test_a_client_that_leaves_is_noted_and_its_job_ends(page, lines):
    asked = {"contents": [{"parts": [{"text": "a"}]}], "generationConfig": {"maxOutputTokens": 400}}
    with httpx.stream("POST", f"{page.url}/v1beta/models/pollux:streamGenerateContent?alt=sse", json=asked, timeout=60) as answer:
        next(answer.iter_bytes())
    until(lambda: lines)
    assert json.loads(lines[0])["code"] == 499
    until(lambda: value(page, "pollux_jobs_total", end="cancelled") >= 1)


def test_a_request_that_takes_too_long_ends_with_504(tmp_path):
    with serving(tmp_path, settings=Settings(timeout=0.001)) as whole:
        with pytest.raises(errors.ServerError) as caught:
            say(gemini(whole, "any"))
        assert (caught.value.code, caught.value.status) == (504, "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"])
def test_a_server_that_fetches_urls_does_not_fetch_from_itself(fetching, host):
    url = f"http://{host}:{fetching.url.rpartition(':')[2]}/metrics"
    with pytest.raises(errors.ClientError, match="may not be fetched from") as caught:
        say(gemini(fetching, "any"), types.Part.from_uri(file_uri=url, mime_type="text/plain"))
    assert caught.value.code == 400


def test_a_running_stream_is_finished_while_the_server_drains(tmp_path):
    with serving(tmp_path) as whole, gemini(whole, "any") as client:
        config = {"max_output_tokens": 120, "temperature": 0}
        stream = client.models.generate_content_stream(model="pollux", contents="a", config=config)
        text = next(stream).text or ""
        whole.listener.stop()
        text += "".join(chunk.text or "" for chunk in stream)
    assert text == small_model().generate("a", temperature=0, max_output_tokens=120).text
