"""Judging: word errors against jiwer, accuracies counted by hand, and a report page that stands alone."""

import dataclasses
import json
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pytest

from pollux.content import Audio, Image, Text, Video
from pollux.data.world import World, render
from pollux.data.world.clips import QUESTIONS as CLIP_QUESTIONS
from pollux.data.world.grammar import QUESTIONS
from pollux.evaluate.page import Bar, Example, write
from pollux.evaluate.score import normal, word_error_rate, word_errors
from pollux.evaluate.world import evaluate, shuffle_pixels
from pollux.generate.answer import Result, Usage
from pollux.media import VideoArray
from pollux.model.family import tiny
from pollux.tokens.codec import Codec, CodecConfig
from pollux.tokens.codec.model import init
from pollux.tokens.text import MINIMUM_SIZE, train_bpe
from pollux.tokens.vocabulary import Vocabulary


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
    assert len(reader.sources) == 5  # a drawing, a picture, a sound and two frames
    assert all(source.startswith("data:") for source in reader.sources)
    assert "script" not in reader.tags and "link" not in reader.tags


def test_the_report_page_shows_what_was_asked_what_was_said_and_what_would_be_right(tmp_path):
    words = " ".join(Reader(report_page(tmp_path)[1]).words)
    for text in ("draw <b> & co", "what colour", "✗ blue", "right: red", "✓ left"):
        assert text in words


def test_bars_are_as_long_as_their_value_and_mark_chance(tmp_path):
    text = report_page(tmp_path)[1]
    assert "width:50.0%" in text and "left:25.0%" in text


class OpenWorld(World):
    """A world that remembers what it asked, and takes less pains with what guessing gets."""

    def items(self, task, n, split="held_out"):
        self.asked = [(task, item) for item in super().items(task, n, split)]
        return [item for _, item in self.asked]

    def chance(self, task, n=500):
        return super().chance(task, n)


class Oracle:
    """Knows the right answers to the very items of the world, and is wrong on those whose number `wrong` accepts and on all others."""

    def __init__(self, world, wrong=lambda number: False):
        self.world, self.wrong, self.config = world, wrong, tiny()
        self.vocabulary = Vocabulary(train_bpe([], MINIMUM_SIZE))
        codec = CodecConfig(hidden=4)
        self.codec = Codec(codec, init(codec, seed=0))

    def generate_many(self, prompts, **sampling):
        known = {id(item.contents): (number, task, item) for number, (task, item) in enumerate(self.world.asked)}
        return [self.result(*known.get(id(prompt), (None, "", None))) for prompt in prompts]

    def result(self, number, task, item):
        if item is None or self.wrong(number):
            parts = (Text("nothing"),)
        elif task == "draw":
            parts = (Image(render(item.truth)),)
        else:
            parts = (Text(f" {item.answer.upper()}"),)
        return Result(parts, np.zeros(1, np.int32), np.zeros(1, np.float32), "stop", Usage({}, {}))


FIGURES = ("caption_exact", "caption_exact_seen", "vqa_exact", "video_exact", "conversation_exact", "draw_correct")


def test_a_model_that_is_always_right_scores_one_and_chance_is_far_below():
    world = OpenWorld()
    evaluation = evaluate(Oracle(world), world, items=16, log=lambda line: None)
    report = evaluation.report
    assert {name: report[name] for name in FIGURES[:-1]} == dict.fromkeys(FIGURES[:-1], 1.0)
    assert report["draw_correct"] > 0.95  # the judge of drawings looks at pixels, its own error is not the model's
    assert report["draw_unasked"] < 0.1
    assert report["speech_wer"] == 0 and report["vqa_unseen_phrasing"] == 1
    assert report["caption_exact_shuffled"] == 0
    assert report["chance"]["vqa"] < 0.6 and report["chance"]["video"] < 0.6 and report["chance"]["draw"] < 0.01
    assert set(report["vqa_by_type"]) == set(QUESTIONS) == set(report["chance"]["vqa_by_type"])
    assert set(report["video_by_type"]) == set(CLIP_QUESTIONS)


def test_every_second_answer_wrong_scores_a_half():
    world = OpenWorld()
    report = evaluate(Oracle(world, wrong=lambda number: number % 2 == 1), world, items=16, log=lambda line: None).report
    assert {name: report[name] for name in FIGURES[:-1]} == dict.fromkeys(FIGURES[:-1], 0.5)
    assert report["vqa_unseen_phrasing"] == 0  # every second item, the very ones that were answered wrong
    assert report["speech_wer"] == pytest.approx(0.5, abs=0.15)  # phrases differ in length
    assert 0.3 < report["draw_correct"] < 0.7


class SparingWorld(OpenWorld):
    """One that wants an object fewer than it asks for."""

    def items(self, task, n, split="held_out"):
        items = [item for item in super().items(task, 2 * n, split) if len(item.truth.things) > 1]
        return [dataclasses.replace(item, truth=dataclasses.replace(item.truth, things=item.truth.things[1:])) for item in items]


def test_objects_that_nobody_asked_for_are_counted_and_do_not_make_others_wrong():
    world = SparingWorld()
    report = evaluate(Oracle(world), world, ["draw"], items=16, log=lambda line: None).report
    assert report["draw_unasked"] == pytest.approx(1, abs=0.1) and report["draw_correct"] > 0.95


def test_shuffled_pictures_keep_their_pixels_and_lose_their_order():
    item = World().items("caption", 1)[0]
    image, *words = item.contents[0].parts
    shuffled, *same_words = shuffle_pixels(item).contents[0].parts
    before, after = image.pixels(), shuffled.pixels()
    assert same_words == words
    np.testing.assert_array_equal(*(np.sort(pixels.reshape(-1, 3).astype(int) @ [1, 256, 65536]) for pixels in (before, after)))
    assert (before != after).any(-1).mean() > 0.9


def test_an_evaluation_is_a_page_of_its_own(tmp_path):
    world = OpenWorld()
    evaluation = evaluate(Oracle(world), world, ("vqa", "speech", "clip", "draw"), items=4, log=lambda line: None)
    write(tmp_path, {"minutes": 1.0} | evaluation.report, evaluation.bars, evaluation.examples)
    reader = Reader((tmp_path / "report.html").read_text())
    assert {"vqa", "speech", "video", "draw"} <= set(reader.words)
    assert reader.tags.count("audio") == 4
    assert json.loads((tmp_path / "report.json").read_text())["speech_wer"] == 0


def test_what_cannot_be_judged_is_refused_before_anything_is_asked():
    world = OpenWorld()
    mute = Oracle(world)
    mute.codec = None
    for options, message in (({"items": 0}, "items 0 must be at least 1"), ({}, "no image codec")):
        with pytest.raises(ValueError, match=message):
            evaluate(mute, world, log=pytest.fail, **options)


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(ValueError, match="no evaluation task dance"):
        evaluate(Oracle(World()), World(), ("dance",))
