"""Thresholds do what they say, on prompts and on answers, and without a scorer nothing is rated."""

import json

import pytest
from small_model import small_model
from starlette.testclient import TestClient

from pollux.content import Text
from pollux.generate.requests import Job, Piece
from pollux.serve.app import create_app
from pollux.serve.errors import ApiError
from pollux.serve.safety import Blocklist, read_settings
from pollux.serve.server import Served, Server
from pollux.serve.wire.enums import HarmBlockThreshold, HarmCategory, HarmProbability
from pollux.serve.wire.generate import SafetySetting

HATE, DANGER = HarmCategory.HARM_CATEGORY_HATE_SPEECH, HarmCategory.HARM_CATEGORY_DANGEROUS_CONTENT
URL = "/v1beta/models/small:"


class Fixed:
    """A scorer that finds the same in every text."""

    def __init__(self, probability):
        self.probability = probability

    def score(self, text):
        return {HATE: self.probability}


class Saying:
    """An engine that says given texts, a piece each."""

    def __init__(self, *texts):
        self.texts, self.jobs = texts, []

    def submit(self, request, notify=None):
        job = Job(request, notify)
        self.jobs.append(job)
        for i, text in enumerate(self.texts):
            job.add(Piece(0, (Text(text),), (300,), (-1.0,), (), "stop" if i == len(self.texts) - 1 else ""))
        job.end()
        job.tell()
        return job


def client(engine, scorer):
    return TestClient(create_app(Server({"small": Served("small", small_model(), engine)}, scorer=scorer)))


def ask(api, text="hello", settings=(), method="generateContent"):
    body = {"contents": [{"parts": [{"text": text}]}], "safetySettings": list(settings)}
    return api.post(URL + method, json=body)


@pytest.mark.parametrize("probability", list(HarmProbability)[1:])
@pytest.mark.parametrize(
    ("threshold", "lowest"),
    [("BLOCK_LOW_AND_ABOVE", 2), ("BLOCK_MEDIUM_AND_ABOVE", 3), ("BLOCK_ONLY_HIGH", 4), ("BLOCK_NONE", 9), ("OFF", 9)],
)
def test_a_threshold_blocks_from_its_probability_on(probability, threshold, lowest):
    verdict = read_settings(Fixed(probability), [SafetySetting(HATE, HarmBlockThreshold[threshold])]).judge("a text")
    assert verdict.blocked == (probability >= lowest)
    assert [(r.category, r.probability, r.blocked) for r in verdict.ratings] == (
        [] if threshold == "OFF" else [(HATE, probability, verdict.blocked)]
    )


def test_settings_that_are_none_are_refused():
    with pytest.raises(ApiError, match=r"safetySettings\[0\].category must be one of"):
        read_settings(None, [SafetySetting(HarmCategory.HARM_CATEGORY_MEDICAL)])
    with pytest.raises(ApiError, match=r"safetySettings\[1\].category is HARM_CATEGORY_HATE_SPEECH a second time"):
        read_settings(None, [SafetySetting(HATE), SafetySetting(HATE)])


def test_a_blocklist_finds_whole_words_in_any_case(tmp_path):
    (tmp_path / "words.json").write_text(json.dumps({"HATE_SPEECH": ["vile", "two words"], "HARM_CATEGORY_DANGEROUS_CONTENT": []}))
    words = Blocklist.load(tmp_path / "words.json")
    for text, found in (("how VILE!", 4), ("Two\n words", 4), ("vilely", 1), ("servile", 1), ("two or words", 1), ("", 1)):
        assert words.score(text) == {HATE: found, DANGER: 1}, text


@pytest.mark.parametrize(
    ("written", "said"),
    [("[", "is not JSON"), ("[]", "must be an object"), ('{"X": []}', "has the category 'X'"), ('{"HATE_SPEECH": [" "]}', "not empty")],
)
def test_a_wrong_blocklist_is_refused_with_its_name(tmp_path, written, said):
    (tmp_path / "words.json").write_text(written)
    with pytest.raises(ValueError, match=f"words.json.*{said}"):
        Blocklist.load(tmp_path / "words.json")


def test_a_blocked_prompt_never_reaches_the_engine():
    engine = Saying("fine")
    for method in ("generateContent", "streamGenerateContent?alt=sse"):
        answer = ask(client(engine, Blocklist({HATE: ["vile"]})), "a vile prompt", method=method)
        answer = json.loads(answer.text.removeprefix("data: "))
        assert answer["promptFeedback"]["blockReason"] == "SAFETY" and "candidates" not in answer
        assert answer["promptFeedback"]["safetyRatings"] == [{"category": HATE.name, "probability": "HIGH", "blocked": True}]
    assert not engine.jobs


def test_a_blocked_answer_gives_nothing_of_itself_away():
    api = client(Saying("this is ", "so vi", "le, really"), Blocklist({HATE: ["vile"]}))
    (candidate,) = ask(api).json()["candidates"]
    assert candidate["finishReason"] == "SAFETY" and "parts" not in candidate["content"]
    off = ask(api, settings=[{"category": HATE.name, "threshold": "BLOCK_NONE"}]).json()["candidates"][0]
    assert off["finishReason"] == "STOP" and off["safetyRatings"][0] == {"category": HATE.name, "probability": "HIGH"}


def test_a_stream_stops_before_a_blocked_word():
    engine = Saying("this is ", "so vi", "le, really", " it is")
    response = ask(client(engine, Blocklist({HATE: ["vile"]})), method="streamGenerateContent?alt=sse")
    chunks = [json.loads(event[6:]) for event in response.text.split("\r\n\r\n") if event]
    text = "".join(p["text"] for c in chunks for p in c["candidates"][0]["content"].get("parts", ()))
    assert text == "this is so "[: len(text)] and "vi" not in text
    assert chunks[-1]["candidates"][0]["finishReason"] == "SAFETY"


def test_without_a_scorer_nothing_is_rated():
    api = client(Saying("a vile answer"), None)
    answer = ask(api, "a vile prompt", [{"category": HATE.name, "threshold": "BLOCK_LOW_AND_ABOVE"}]).json()
    assert answer["candidates"][0]["content"]["parts"] == [{"text": "a vile answer"}]
    assert "promptFeedback" not in answer and "safetyRatings" not in answer["candidates"][0]
