"""Judging: word errors against jiwer, accuracies counted by hand, and a report page that stands alone."""

import json
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pytest

from pollux.content import Audio, Image, Text, Video
from pollux.evaluate.page import Bar, Example, write
from pollux.evaluate.score import majority, normal, word_error_rate, word_errors
from pollux.media import VideoArray


def random_sentence(rng):
    return " ".join(rng.choice(["red", "star", "left", "of", "big"], rng.integers(1, 8)))


def test_word_error_rate_equals_jiwer():
    jiwer = pytest.importorskip("jiwer")
    rng = np.random.default_rng(0)
    references, hypotheses = ([random_sentence(rng) for _ in range(200)] for _ in range(2))
    assert word_error_rate(references, hypotheses) == pytest.approx(jiwer.wer(references, hypotheses), abs=1e-12)


@pytest.mark.parametrize(("said", "errors"), [("a b c", 0), ("", 3), ("a x c", 1), ("a b b c", 1), ("b c", 1), ("c b a", 2)])
def test_word_errors_are_insertions_deletions_and_substitutions(said, errors):
    assert word_errors("a b c", said) == errors


def test_a_word_error_rate_without_words_is_refused():
    with pytest.raises(ValueError, match="at least one reference word"):
        word_error_rate([""], ["red"])


def test_answers_may_differ_in_case_and_spaces_only():
    assert normal(" A red\n star ") == normal("a RED star") != normal("a red star.")


def test_majority_is_the_share_of_the_commonest_answer():
    assert majority(["yes", "no", "yes", "yes"]) == 0.75


class Reader(HTMLParser):
    """Collects the tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def report_page(tmp_path):
    pixels = np.full((4, 4, 3), 200, np.uint8)
    examples = [
        Example("draw", (Text("draw <b> & co"),), "", "1 of 1 objects right", True, (PIL.Image.fromarray(pixels),)),
        Example("vqa", (Image(pixels), Text("what colour")), "red", "blue", False),
        Example("speech", (Audio(np.zeros(160, np.float32), 16_000),), "red star", "red star", True),
        Example("video", (Video(VideoArray(np.stack([pixels, pixels]), np.array([0.0, 0.5]))), Text("which way")), "left", "left", True),
    ]
    report = {"minutes": 2.0, "parameters": 1234, "vqa_exact": 0.5}
    write(tmp_path, report, {"All": [Bar("vqa", 0.5, 0.25)]}, examples)
    return report, (tmp_path / "report.html").read_text()


def test_the_report_file_is_the_report(tmp_path):
    report, _ = report_page(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_the_report_page_needs_no_other_file_and_runs_no_script(tmp_path):
    reader = Reader(report_page(tmp_path)[1])
    assert len(reader.sources) == 5
    assert all(source.startswith("data:") for source in reader.sources)
    assert "script" not in reader.tags and "link" not in reader.tags


def test_the_report_page_shows_what_was_asked_what_was_said_and_what_would_be_right(tmp_path):
    words = " ".join(Reader(report_page(tmp_path)[1]).words)
    for text in ("draw <b> & co", "what colour", "✗ blue", "right: red", "✓ left"):
        assert text in words


def test_bars_are_as_long_as_their_value_and_mark_chance(tmp_path):
    text = report_page(tmp_path)[1]
    assert "width:50.0%" in text and "left:25.0%" in text
