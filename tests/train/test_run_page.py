"""The page of a run: readable by a parser, safe for any text, self-contained."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from random_batch import TOKENS, small_model

from pollux.content import Audio, Text
from pollux.content import Image as ImagePart
from pollux.data.mixture import DataConfig, SourceConfig
from pollux.train.config import TrainConfig
from pollux.train.report import nice_ticks, page
from pollux.train.samples import Sample

CONFIG = TrainConfig(small_model(), TOKENS, DataConfig((SourceConfig("world", task="picture"),)), vocabulary="words", steps=10)
LINE = {"seconds": 60.0, "tokens_per_second": 5000.0, "draw": 0.0}


class Balance(HTMLParser):
    """Keeps the stack of open elements and all text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_samples_are_shown_as_they_are_and_pictures_survive():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    sound = Audio(np.zeros(160, np.float32), 16_000)
    drawn = Sample((sound, Text("<b>draw</b> & more")), (Text("an <answer>"), ImagePart(pixels)), (Text("truth"),))
    text = page(CONFIG, [LINE | {"step": 1, "text": 3.5}], [drawn, Sample((Text("hi"),), ())])
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    for words in ("<b>draw</b> & more", "an <answer>", "truth", "(nothing)"):
        assert words in parser.text
    assert text.count("<audio") == 1
    embedded = re.search(r'src="data:image/png;base64,([^"]+)"', text)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(embedded[1])))), pixels)


def test_the_page_needs_no_other_file_and_shows_only_what_was_measured():
    text = page(CONFIG, [LINE | {"step": step, "text": 3.5 / step} for step in (1, 2, 3)])
    assert not re.search(r"https?://|<script|<link", text)
    assert "Text loss" in text and "Image-code loss" not in text, "a curve that is always zero is left out"
    assert "words" in text, "the config is listed"


def test_the_loss_on_held_out_documents_is_drawn_beside_that_of_the_training():
    lines = [
        LINE | {"step": 1, "text": 4.0},
        {"step": 1, "held_out_text": 3.0},
        LINE | {"step": 9, "text": 0.5},
        {"step": 9, "held_out_text": 2.0},
    ]
    text = page(CONFIG, lines)
    card = next(card for card in text.split("<figure")[1:] if "Text loss" in card)
    assert "held out 2<" in card and card.count('class="curve held"') == card.count('class="curve"') == 1
    assert "step 9 · 1.0 min" in text and text.count('class="curve held"') == 1
    heights = [[float(point.split()[1]) for point in path.split("L")] for path in re.findall(r'class="curve[^"]*" d="M([^"]+)"', card)]
    (first, last), (held_first, held_last) = heights
    assert first < held_first < held_last < last, "both curves share one axis, on which up is less"


def test_a_curve_runs_from_its_first_to_its_last_value():
    text = page(CONFIG, [LINE | {"step": step, "text": value} for step, value in ((1, 0.0), (2, 4.0), (5, 2.0))])
    curve = re.search(r'class="curve" d="M([^"]+)"', text)[1]
    points = np.array([point.split() for point in curve.split("L")], float)
    x, y = points.T
    assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(1 / 4, abs=0.01)
    assert (y[0] - y[2]) / (y[0] - y[1]) == pytest.approx(1 / 2, abs=0.01)


@pytest.mark.parametrize("low, high", [(1.3, 6.5), (0.0, 1.0), (0.03, 0.031), (5.0, 5.0), (0.0, 0.0), (148.0, 1980.0), (-2.0, 3.0)])
def test_ticks_enclose_the_values_at_round_numbers(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-12 and high - 1e-12 <= ticks[-1] and 2 <= len(ticks) <= 7
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])
    assert f"{ticks[1] - ticks[0]:.0e}"[0] in "125"
