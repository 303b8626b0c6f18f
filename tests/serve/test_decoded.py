"""Decoded sounds, clips and pages are kept, and a prompt does not change by it."""

import io

import numpy as np
import PIL.Image
import pytest
from small_model import small_model

from pollux import media
from pollux.content import Audio, Content, Image, Text, Video
from pollux.media import VideoArray, encode_audio, encode_image, encode_video, pdf_pages
from pollux.serve.decoded import DecodedMedia

RNG = np.random.default_rng(0)
TIMES = np.arange(30) / 10
CLIP = encode_video(VideoArray(RNG.integers(0, 256, (30, 16, 16, 3), np.uint8), TIMES, RNG.normal(0, 0.1, 48000), 16000))
SOUND = encode_audio(RNG.normal(0, 0.1, 22050).astype(np.float32), 22050)
PDF = io.BytesIO()
PIL.Image.new("RGB", (60, 40), "red").save(PDF, "PDF", save_all=True, append_images=[PIL.Image.new("RGB", (40, 60), "blue")])
PAGES = pdf_pages(PDF.getvalue())
PNG = encode_image(RNG.integers(0, 256, (16, 24, 3), np.uint8))


def prompt(kept, *parts):
    model = small_model()
    turns = [Content("user", parts)]
    return model.prompt(turns if kept is None else kept.turns(turns, model.tokens_config, model.limits))


@pytest.mark.parametrize(
    "part", [Video(CLIP), Video(CLIP, 0.5, 2.1, 4.0), Video(CLIP, fps=8.0), Audio(SOUND), Image(PNG), Image(PAGES[1]), Text("a")]
)
def test_a_prompt_is_the_same_with_what_was_kept(part):
    kept = DecodedMedia()
    expected = prompt(None, part)
    for _ in range(2):
        found = prompt(kept, part)
        np.testing.assert_array_equal(found.ids, expected.ids)
        assert found.soft.keys() == expected.soft.keys()
        for name, soft in expected.soft.items():
            np.testing.assert_array_equal(found.soft[name].features, soft.features)


def test_a_medium_is_decoded_once_by_its_content(monkeypatch, tmp_path):
    decoded = []
    decode = media.decode_video
    monkeypatch.setattr(media, "decode_video", lambda source, *rest: decoded.append(isinstance(source, bytes)) or decode(source, *rest))
    kept = DecodedMedia()
    for data in (CLIP, bytes(bytearray(CLIP)), CLIP):
        prompt(kept, Video(data))
    assert decoded.count(True) == 1
    prompt(kept, Video(CLIP, 0.5))
    assert decoded.count(True) == 2


def test_pages_are_kept_one_by_one(monkeypatch):
    drawn = []
    decode = media.decode_image
    monkeypatch.setattr(media, "decode_image", lambda source, *rest: drawn.append(getattr(source, "number", None)) or decode(source, *rest))
    kept = DecodedMedia()
    for _ in range(2):
        prompt(kept, *map(Image, pdf_pages(PDF.getvalue())))
    assert [number for number in drawn if number] == [1, 2]


def test_what_was_used_longest_ago_makes_room():
    one = Audio(SOUND)
    size = one.samples(16000).nbytes
    kept = DecodedMedia(2 * size)
    sounds = [Audio(encode_audio(np.full(22050, level, np.float32), 22050)) for level in (0.1, 0.2, 0.3)]
    parts = [kept.turns([Content("user", (sound,))], small_model().tokens_config, small_model().limits)[0].parts[0] for sound in sounds]
    again = [
        kept.turns([Content("user", (sound,))], small_model().tokens_config, small_model().limits)[0].parts[0] for sound in reversed(sounds)
    ]
    assert again[0] is parts[2] and again[1] is parts[1] and again[2] is not parts[0]


def test_of_many_pages_none_is_held_in_memory():
    kept, model = DecodedMedia(), small_model()
    for number, held in ((24, True), (25, False)):
        (turn,) = kept.turns([Content("user", tuple(map(Image, PAGES[:1] * number)))], model.tokens_config, model.limits)
        assert [isinstance(part.source, np.ndarray) for part in turn.parts] == [held] * number
