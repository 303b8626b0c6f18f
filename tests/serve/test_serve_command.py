"""`pollux serve` as a program of its own: what it prints, how it refuses, how it ends."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import openai
import pytest
from google import genai
from google.genai import errors
from small_model import TOKENS, small_model
from stored_server import until

from pollux.cli import main
from pollux.commands.serve import Options, welcome
from pollux.generate.model import Model

SMALL = ("--max-rows", "4", "--cache-tokens", "8192")  # so that little is compiled


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose model reads and writes longer texts than the small one, and does not draw."""
    model = small_model()
    config = dataclasses.replace(model.config, max_positions=2048)
    path = tmp_path_factory.mktemp("runs") / "tiny" / "model"
    Model({**model.params}, config, TOKENS, model.vocabulary).save(path)
    return path


class Program:
    """A running server; its lines of stdout up to the last one that it prints at the start."""

    def __init__(self, process):
        self.process, self.lines = process, []
        for line in process.stdout:
            self.lines.append(line.rstrip("\n"))
            if "print(client" in line:
                return
        raise AssertionError(process.stderr.read())

    @property
    def url(self):
        return next(line.split()[1].rstrip("/") for line in self.lines if line.startswith("  page"))

    def signal(self, number):
        self.process.send_signal(number)

    def ended(self):
        return self.process.wait(60)


@contextlib.contextmanager
def serving(folder, data, *flags):
    command = [sys.executable, "-m", "pollux.cli", "serve", str(folder), "--port", "0", "--data", str(data), *SMALL, *flags]
    environment = os.environ | {"POLLUX_CACHE": str(folder.parent / "cache")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield Program(process)
    finally:
        process.kill()
        process.communicate()


def test_a_server_answers_drains_and_ends(folder, tmp_path):
    with serving(folder, tmp_path, "--alias", "gemini-*", "--cold") as program:
        assert "tiny, gemini-*, pollux" in program.lines[0]
        with genai.Client(api_key="none", http_options={"base_url": program.url}) as client:
            config = {"max_output_tokens": 20, "temperature": 0}
            expected = client.models.generate_content(model="gemini-2.5-flash", contents="a red", config=config).text
            refused = threading.Event()

            def body():
                """Holds the request open until others have been refused."""
                yield b'{"contents": [{"parts": [{"text": "a red"}]}],'
                assert refused.wait(60)
                yield b'"generationConfig": {"maxOutputTokens": 20, "temperature": 0}}'

            def ask():
                url = f"{program.url}/v1beta/models/pollux:streamGenerateContent?alt=sse"
                answers.append(httpx.post(url, content=body(), timeout=60))

            answers: list[httpx.Response] = []
            asking = threading.Thread(target=ask)
            asking.start()
            until(lambda: running(program) == 1)
            program.signal(signal.SIGTERM)
            until(lambda: httpx.get(f"{program.url}/readyz").status_code == 503)
            with pytest.raises(errors.ServerError, match="shutting down"):
                client.models.generate_content(model="pollux", contents="a")
        refused.set()
        asking.join()
        chunks = [json.loads(event.removeprefix("data: ")) for event in answers[0].text.split("\r\n\r\n")[:-1]]
        assert "".join(part["text"] for chunk in chunks for part in chunk["candidates"][0]["content"].get("parts", [])) == expected
        assert chunks[-1]["candidates"][0]["finishReason"] == "MAX_TOKENS"
        assert program.ended() == 0


def running(program):
    """Requests in the server beside this one."""
    return int(httpx.get(f"{program.url}/readyz").json()["running"])


@pytest.mark.slow
def test_a_second_signal_ends_a_server_at_once(folder, tmp_path):
    with serving(folder, tmp_path, "--cold") as program, genai.Client(api_key="none", http_options={"base_url": program.url}) as client:
        config = {"max_output_tokens": 1900, "temperature": 0, "candidate_count": 8}
        stream = client.models.generate_content_stream(model="pollux", contents="a", config=config)
        next(stream)
        program.signal(signal.SIGINT)
        until(lambda: httpx.get(f"{program.url}/readyz").status_code == 503)
        program.signal(signal.SIGINT)
        assert program.ended() == 0
        with pytest.raises(Exception, match="closed|incomplete"):
            list(stream)


@pytest.mark.slow
def test_a_server_on_all_addresses_wants_keys_and_speaks_tls(folder, tmp_path, capsys, monkeypatch):
    assert main(["keys", "add", "laptop", "--data", str(tmp_path)]) == 0
    key = capsys.readouterr().out.strip()
    with serving(folder, tmp_path, "--host", "0.0.0.0", "--tls") as program:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tls" / "authority.pem"))
        assert program.url.startswith("https://") and key not in "".join(program.lines)
        with genai.Client(api_key=key, http_options={"base_url": program.url}) as client:
            assert client.models.generate_content(model="tiny", contents="a", config={"max_output_tokens": 3}).usage_metadata
        with genai.Client(api_key="wrong", http_options={"base_url": program.url}) as client:
            with pytest.raises(errors.ClientError, match="API key not valid"):
                client.models.generate_content(model="tiny", contents="a")
        with openai.OpenAI(api_key=key, base_url=f"{program.url}/v1") as client:
            assert [model.id for model in client.models.list()] == ["tiny", "pollux"]
        assert main(["serve", str(folder), "--data", str(tmp_path), "--port", "0"]) == 2  # a folder has one server
        assert "in use by another server" in capsys.readouterr().err
        program.signal(signal.SIGTERM)
        assert program.ended() == 0
        assert key not in program.process.stderr.read()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "pollux keys add"),
        (["--require-keys"], "pollux keys add"),
        (["--require-keys", "--no-keys"], "exclude each other"),
        (["--port", "99999"], "between 0 and 65535"),
        (["--certificate", "a.pem"], "need each other"),
        (["--certificate", "a.pem", "--certificate-key", "b.pem"], "a.pem and b.pem are no certificate"),
        (["--certificate", "a.pem", "--certificate-key", "b.pem", "--tls"], "--tls makes a certificate"),
        (["--drain", "-1"], "--drain"),
        (["--timeout", "nan"], "--timeout"),
        (["--cors", "example.org"], "origin"),
        (["--tokens-per-minute", "0"], "at least 1"),
        (["--port", "taken"], "cannot listen"),
        (["--code-seconds", "0"], "--code-seconds 0 must be above 0"),
        (["--code-memory", "1000"], "--code-memory 1000 must be at least"),
        (["--search", "absent"], "--search absent is no folder"),
        (["--search-url", "https://a.example/"], "--search-url needs --search"),
    ],
)
def test_what_keeps_a_server_from_starting_is_one_line(folder, tmp_path, capsys, flags, message):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = [str(taken.getsockname()[1]) if flag == "taken" else flag for flag in flags]
        assert main(["serve", str(folder), "--data", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_without_bubblewrap_code_execution_keeps_a_server_from_starting(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["serve", str(folder), "--data", str(tmp_path), "--port", "0", "--code-execution"]) == 2
    error = capsys.readouterr().err
    assert "apt install bubblewrap" in error and error.count("\n") == 1


def test_a_folder_that_holds_no_model_is_named(tmp_path, capsys):
    code = []
    thread = threading.Thread(
        target=lambda: code.append(main(["serve", str(tmp_path / "nowhere"), "--data", str(tmp_path), "--port", "0"]))
    )
    thread.start()  # the listener takes signals only on the main thread, where pytest has its own
    thread.join(60)
    assert code == [2] and "nowhere is not a model folder" in capsys.readouterr().err


def test_the_name_of_a_model_is_that_of_its_folder_or_run(tmp_path):
    for path, name in (("runs/quickstart/model", "quickstart"), ("gemma-3", "gemma-3"), ("my model!", "my-model")):
        assert Options(tmp_path / path).model_name == name
    assert Options(tmp_path / "x", name="other").model_name == "other"


@pytest.mark.parametrize(
    ("flags", "keys_required", "hosts"),
    [
        ({}, False, True),
        ({"host": "::1"}, False, True),
        ({"host": "localhost", "require_keys": True}, True, True),
        ({"host": "0.0.0.0"}, True, False),
        ({"host": "::"}, True, False),
        ({"host": "box.example"}, True, False),
        ({"host": "192.168.1.5", "no_keys": True}, False, False),
    ],
)
def test_only_a_loopback_address_is_open_and_checks_names(tmp_path, flags, keys_required, hosts):
    rules = Options(tmp_path, **flags).rules()
    assert rules.keys_required == keys_required and (rules.hosts is not None) == hosts
    assert not hosts or Options(tmp_path, **flags).host in rules.hosts


def test_what_a_server_prints_leads_to_it(tmp_path):
    lines = "\n".join(welcome(Options(tmp_path / "tiny", host="::", tls=True), 8443, keys_required=True))
    assert "https://[::1]:8443/v1beta/models/pollux:generateContent -H 'x-goog-api-key: YOUR-KEY'" in lines
    plain = "\n".join(welcome(Options(tmp_path / "tiny", host="0.0.0.0"), 80, keys_required=False))
    assert "http://127.0.0.1:80/" in plain and "x-goog-api-key" not in plain
