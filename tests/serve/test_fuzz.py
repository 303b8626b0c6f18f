"""What nobody sends on purpose, on every route: no error of the server, no hang, nothing left behind. The full number is in the slow test
and in benchmarks/fuzz.py."""

import os
import urllib.parse

import httpx
import pytest
from fuzzing.damage import Ask
from fuzzing.routes import KNOWN, others
from fuzzing.run import POOLS, SLACK, State, Target
from fuzzing.send import Answer, judged
from small_program import serving as program
from whole_server import serving


def test_requests_that_make_no_sense_are_answered_and_leave_nothing(tmp_path):
    with serving(tmp_path) as whole:
        report = Target(urllib.parse.urlsplit(whole.url).port, os.getpid()).fuzz(300)
    assert not report.failures and not report.left, report.described()
    assert report.requests == 300 and {200, 400, 403, 404} <= {status for _, status in report.counts}


@pytest.mark.slow
def test_five_thousand_requests_that_make_no_sense_are_answered_and_leave_nothing():
    with program() as (port, process):
        report = Target(port, process.pid).fuzz(5000, first_seed=7)
        assert process.poll() is None
    assert not report.failures and not report.left, report.described()
    assert {one.path for one in KNOWN} <= {route for route, _ in report.counts}


def test_routes_that_the_fuzzer_does_not_know_are_asked_by_their_pattern():
    patterns = [pattern for pattern, _ in others()]
    assert any("/completions" in pattern for pattern in patterns)  # of /openai, beside that of the version
    assert not any("generateContent" in pattern for pattern in patterns)


@pytest.mark.parametrize(
    ("ask", "answer", "wrong"),
    [
        ({}, Answer(500, {}, b"oh"), "answered with 500"),
        ({}, Answer(504, {}, b""), "answered with 504"),
        ({}, Answer(400, {}, b"Bad Request"), "without its form"),
        ({}, Answer(400, {}, b'{"error": {"code": 404, "message": "no", "status": "NOT_FOUND"}}'), "another form"),
        ({"form": "openai"}, Answer(400, {}, b'{"error": {"code": 400, "status": "X"}}'), "without a message"),
        ({"form": "openai"}, Answer(400, {}, b'{"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}'), "another form"),
        ({}, Answer(200, {"content-type": "application/json"}, b'{"a":'), "cannot be read"),
        ({}, Answer(200, {"content-type": "text/event-stream"}, b"data: {}\n\ndata: 3\n\n"), "no object"),
        ({}, Answer(200, {}, b""), "of the type"),
        ({}, Answer(400, {}, b'{"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}'), ""),
        ({"form": "interactions"}, Answer(400, {}, b'{"error": {"code": "invalid_argument", "message": "no"}}'), ""),
        (
            {"headers": (("X-Server-Timeout", "0.001"),)},
            Answer(504, {}, b'{"error": {"code": 504, "message": "no", "status": "LATE"}}'),
            "",
        ),
        ({}, Answer(200, {"content-type": "text/event-stream"}, b"data: {}\r\n\r\ndata: [DONE]\r\n\r\n"), ""),
    ],
)
def test_a_wrong_answer_would_be_seen(ask, answer, wrong):
    found = judged(Ask("r", "GET", "/", **ask), answer)
    assert wrong in found and bool(found) == bool(wrong)


class Scripted(Target):
    """A server that held the first state when it was looked at, and holds the second one in the end."""

    def __init__(self, *states):
        super().__init__(0, 0)
        self.states = list(states)

    def _send(self, number, first_seed, report):
        report.counts["r", 200] += number

    def settled(self, before=None):
        return self.states.pop(0)


@pytest.mark.parametrize(
    ("after", "left"),
    [
        (State(30 + POOLS, 20 + SLACK, 0, 0, 0), []),
        (State(31 + POOLS, 20, 0, 0, 0), ["left behind"]),
        (State(30, 21 + SLACK, 0, 0, 0), ["left behind"]),
        (State(30, 20, 0, 0, 1), ["still in the engine"]),
        (State(30, 20, 1, 0, 0), ["still in the engine"]),
        (State(30, 20, 0, 1, 0), ["still in the engine"]),
    ],
)
def test_what_is_left_behind_would_be_seen(after, left):
    report = Scripted(State(30, 20, 0, 0, 0), after).fuzz(9)
    assert report.requests == 9 and [said.partition(":")[0] for said in report.left] == left


def test_an_origin_that_is_no_address_is_foreign(tmp_path):
    with serving(tmp_path) as whole:
        answer = httpx.get(f"{whole.url}/v1beta/models", headers={"Origin": "http://["})
        assert (answer.status_code, answer.json()["error"]["status"]) == (403, "PERMISSION_DENIED")
