"""API keys at rest, and the allowances of those who hold them."""

import os
import sqlite3
import subprocess
import sys

import pytest
from starlette.datastructures import Headers, QueryParams

from pollux.cli import main
from pollux.generate.prompts import plain
from pollux.generate.requests import Overloaded, Request
from pollux.generate.sampler import Sampling
from pollux.serve.keys import Keys, presented
from pollux.serve.limits import LimitExceeded, Limits
from pollux.serve.measure import MeasuredEngine
from pollux.serve.metrics import Metrics
from pollux.serve.records import Records


@pytest.fixture
def keys(tmp_path):
    records = Records(tmp_path / "pollux.sqlite")
    yield Keys(records)
    records.close()


def test_a_key_is_found_until_it_is_removed(keys):
    first, second = keys.add("laptop", tokens_per_minute=7), keys.add("phone")
    assert first != second
    assert (keys.find(first).name, keys.find(first).tokens_per_minute, keys.find(second).name) == ("laptop", 7, "phone")
    assert keys.find("pollux-no-such-key") is None and keys.find("\udcff") is None
    keys.remove("laptop")
    assert keys.find(first) is None and [key.name for key in keys.all()] == ["phone"]


def test_a_key_is_not_in_the_file(keys, tmp_path):
    secret = keys.add("laptop").removeprefix("pollux-")
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"laptop" in stored and secret.encode() not in stored


@pytest.mark.parametrize("verb", [["serve"], ["keys", "add"]])
def test_the_password_of_the_database_is_not_in_the_help(verb):
    environment = os.environ | {"POLLUX_DATABASE": "postgresql://me:secret@host/name"}
    shown = subprocess.run([sys.executable, "-m", "pollux.cli", *verb, "--help"], env=environment, capture_output=True, text=True)
    assert "--database" in shown.stdout and "secret" not in shown.stdout


def test_a_running_server_sees_what_another_program_adds(keys, tmp_path):
    elsewhere = Records(tmp_path / "pollux.sqlite")
    made = Keys(elsewhere).add("laptop")
    elsewhere.close()
    assert keys.find(made).name == "laptop"


@pytest.mark.parametrize("name", ["", "two words", "-flag", "x" * 64, "a/b"])
def test_a_name_that_does_not_fit_is_refused(keys, name):
    with pytest.raises(ValueError, match="name"):
        keys.add(name)


def test_names_are_taken_once_and_limits_are_positive(keys):
    keys.add("laptop")
    with pytest.raises(ValueError, match="already"):
        keys.add("laptop")
    with pytest.raises(ValueError, match="at least 1"):
        keys.add("phone", requests_per_minute=0)
    with pytest.raises(ValueError, match="no key named 'phone'"):
        keys.remove("phone")


@pytest.mark.parametrize(
    ("headers", "query", "found"),
    [
        ({"X-Goog-Api-Key": "k"}, "", "k"),
        ({}, "key=k", "k"),
        ({"Authorization": "Bearer k"}, "", "k"),
        ({"authorization": "bearer  k"}, "", "k"),
        ({"Authorization": "Basic k"}, "", ""),
        ({}, "", ""),
    ],
)
def test_a_key_comes_as_either_kind_of_client_sends_it(headers, query, found):
    assert presented(Headers(headers), QueryParams(query)) == found


def test_keys_are_made_listed_and_removed_on_the_command_line(tmp_path, capsys):
    data = ["--data", str(tmp_path / "data")]
    assert main(["keys", "add", "laptop", *data, "--tokens-per-minute", "1000"]) == 0
    made = capsys.readouterr().out.strip()
    assert main(["keys", "list", *data]) == 0
    shown = capsys.readouterr().out
    assert "laptop" in shown and "1,000 tokens a minute" in shown and made not in shown
    assert main(["keys", "remove", "laptop", *data]) == 0
    assert main(["keys", "remove", "laptop", *data]) == 2
    assert "no key named" in capsys.readouterr().err
    with sqlite3.connect(tmp_path / "data" / "pollux.sqlite") as database:
        assert database.execute("SELECT count(*) FROM records").fetchone() == (0,)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_requests_are_refused_beyond_the_limit_and_allowed_again_later(clock):
    limits = Limits(clock)
    for _ in range(6):
        limits.admit("laptop", 6, None)
    with pytest.raises(LimitExceeded) as caught:
        limits.admit("laptop", 6, None)
    assert caught.value.code == 429 and caught.value.headers == {"Retry-After": "10"}
    assert caught.value.json()["error"]["details"] == [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "10s"}]
    limits.admit("phone", 6, None)
    clock.now += caught.value.seconds
    limits.admit("laptop", 6, None)
    with pytest.raises(LimitExceeded):
        limits.admit("laptop", 6, None)


def test_tokens_that_were_used_keep_a_client_out_until_they_are_earned_back(clock):
    limits = Limits(clock)
    limits.admit("laptop", None, 60)
    limits.charge("laptop", 100)
    limits.charge("phone", 10**6)  # whose tokens nobody limits
    with pytest.raises(LimitExceeded, match="60 tokens a minute") as caught:
        limits.admit("laptop", None, 60)
    assert caught.value.seconds == 40
    with pytest.raises(LimitExceeded):
        limits.check_tokens("laptop")
    limits.check_tokens("phone")
    clock.now += 40.5
    limits.admit("laptop", None, 60)
    limits.admit("phone", None, None)


def test_clients_that_are_not_seen_any_more_are_forgotten(clock, monkeypatch):
    monkeypatch.setattr("pollux.serve.limits._MOST_BUCKETS", 100)
    limits = Limits(clock)
    for i in range(1000):
        limits.admit(f"10.0.0.{i}", 60, 1000)
        clock.now += 1
    assert len(limits._buckets) <= 110 and len(limits._per_minute) <= 220


class FullEngine:
    """Has no room for anything."""

    def submit(self, request, notify):
        raise Overloaded("full")

    def hold(self, prompt):
        raise Overloaded("full")


def test_what_the_engine_refuses_costs_no_tokens():
    limits, metrics = Limits(), Metrics()
    measured = MeasuredEngine(FullEngine(), "small", metrics, limits)
    for _ in range(3):
        limits.admit("a", None, 60)
        with pytest.raises(Overloaded):
            measured.submit(Request(plain(range(100)), Sampling(), owner="a"))
        with pytest.raises(Overloaded):
            measured.hold(plain(range(100)))
    assert b"pollux_tokens_total{" not in metrics.text()
