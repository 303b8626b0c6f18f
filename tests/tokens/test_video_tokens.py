"""A clip as spans: times, patches, differences, and the sound that belongs to each frame."""

import numpy as np
import pytest

from pollux.tokens.config import AudioTokens, ImageTokens, VideoTokens
from pollux.tokens.image import patches
from pollux.tokens.video import clock_text, time_text, tokens

SILENT = np.zeros(0, np.float32)
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
RAW = AudioTokens(kind="raw", rate=1000, frame=100)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (1, "1s"), (1.5, "1.5s"), (1.46, "1.5s"), (0.98, "1s"), (10, "10s"), (62.0, "62s")]
)
def test_times_have_their_shortest_form(seconds, text):
    assert time_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00"), (1, "00:01"), (0.9995, "00:01"), (59.99, "00:59"), (61.5, "01:01"), (6001, "100:01")]
)
def test_times_of_pictures_are_those_of_a_clock(seconds, text):
    assert clock_text(seconds) == text


def test_features_of_a_pixel_are_its_values_then_their_change_since_the_previous_frame():
    spans = tokens(FRAMES, [0, 1, 2], SILENT, VideoTokens(), AudioTokens())
    single = [patches(frame, ImageTokens())[0] for frame in FRAMES]
    for i, span in enumerate(spans):
        change = single[i] - single[i - 1] if i else np.zeros_like(single[0])
        pixels = span.features.reshape(6, -1, 6)
        np.testing.assert_allclose(pixels[..., :3].reshape(6, -1), single[i], atol=1e-6)
        np.testing.assert_allclose(pixels[..., 3:].reshape(6, -1), change, atol=1e-6)
        assert span.features.shape == (6, VideoTokens().features)
    plain = tokens(FRAMES, [0, 1, 2], SILENT, VideoTokens(difference=False), AudioTokens())
    np.testing.assert_array_equal(plain[2].features, single[2])


def test_frames_are_shrunk_to_the_budget_of_a_frame():
    span = tokens(np.zeros((1, 480, 640, 3), np.uint8), [0], SILENT, VideoTokens(max_tokens=12), AudioTokens())[0]
    assert len(span.features) == 12 and span.coord.max(axis=0).tolist() == [2, 3]


def test_each_frame_has_the_sound_until_the_next_and_none_is_lost():
    sound = np.arange(1, 2301, dtype=np.float32)
    spans = tokens(FRAMES, [0, 0.5, 2], sound, VideoTokens(), RAW)
    assert [span.time for span in spans] == ["0s", "0.5s", "2s"]
    assert [len(span.sound) for span in spans] == [5, 15, 3]
    np.testing.assert_array_equal(np.concatenate([span.sound for span in spans]).reshape(-1), sound)


def test_sound_that_ends_early_leaves_later_frames_silent():
    assert [len(span.sound) for span in tokens(FRAMES, [0, 1, 2], np.ones(1200, np.float32), VideoTokens(), RAW)] == [10, 2, 0]


def test_sound_is_left_out_on_request():
    spans = tokens(FRAMES, [0, 1, 2], np.ones(3000, np.float32), VideoTokens(sound=False), RAW)
    assert [len(span.sound) for span in spans] == [0, 0, 0]


def test_a_clip_without_frames_is_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        tokens(FRAMES[:0], [], SILENT, VideoTokens(), AudioTokens())
