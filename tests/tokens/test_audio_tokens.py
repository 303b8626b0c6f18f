"""Log-mel frames against the formula in float64 and against transformers; raw frames; padding."""

import math

import numpy as np
import pytest

from pollux.tokens.audio import log_mel, mel_filters, tokens
from pollux.tokens.config import AudioTokens

RATE = 16_000


def speech_like(seconds: float) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    voice = sum(np.sin(2 * np.pi * 140 * k * t + k) / k for k in range(1, 40))
    return (0.1 * voice + 0.01 * np.random.default_rng(0).standard_normal(len(t))).astype(np.float32)


def test_mel_filters_are_slaney_triangles():
    """Each triangle from the published scale: linear to 1000 Hz at 15 mel, then 27 mel for a factor of 6.4."""

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)

    top = 15 + 27 * math.log(8) / math.log(6.4)
    corners = [hertz(top * i / 129) for i in range(130)]
    filters = mel_filters(RATE, 512, 128)
    for m in range(128):
        for b in range(257):
            f = b * RATE / 512
            rise, fall = (f - corners[m]) / (corners[m + 1] - corners[m]), (corners[m + 2] - f) / (corners[m + 2] - corners[m + 1])
            assert filters[b, m] == pytest.approx(max(0.0, min(rise, fall)), abs=1e-5)
    assert (filters.sum(axis=0) > 0).all()


def test_log_mel_equals_the_formula_in_float64():
    samples = speech_like(0.3)
    mel = log_mel(samples, AudioTokens())
    padded = np.concatenate([samples.astype(np.float64), np.zeros(1000)])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    basis = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(400)) / 512)
    for t in (0, 7, 31):
        power = np.abs(basis @ (hann * padded[t * 160 : t * 160 + 400])) ** 2
        reference = (np.log(np.maximum(power @ mel_filters(RATE, 512, 128).astype(np.float64), 1e-5)) + 4) / 4
        np.testing.assert_allclose(mel[t], reference, atol=2e-4)


def test_log_mel_equals_transformers():
    audio_utils = pytest.importorskip("transformers.audio_utils")
    filters = audio_utils.mel_filter_bank(257, 128, 0.0, 8000.0, RATE, norm=None, mel_scale="slaney")
    samples = speech_like(0.5)
    reference = audio_utils.spectrogram(
        samples,
        audio_utils.window_function(400, "hann"),
        400,
        160,
        512,
        center=False,
        power=2.0,
        mel_filters=filters,
        mel_floor=1e-5,
        log_mel="log",
    ).T
    mel = log_mel(samples, AudioTokens())
    assert len(reference) > 40
    np.testing.assert_allclose(mel[: len(reference)] * 4 - 4, reference, atol=1e-3)


def test_a_tone_lights_the_filter_of_its_frequency():
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    peak = log_mel(tone, AudioTokens())[10].argmax()
    top = 15 + 27 * math.log(8) / math.log(6.4)
    assert abs((peak + 1) * top / 129 - 15) < 0.5  # 1000 Hz is 15 mel


def test_features_are_about_unit_range():
    mel = log_mel(speech_like(1.0), AudioTokens())
    assert -2 < mel.min() and mel.max() < 3 and 0.3 < mel.std() < 2
    assert log_mel(np.zeros(800, np.float32), AudioTokens()).max() == pytest.approx((math.log(1e-5) + 4) / 4)


@pytest.mark.parametrize(("samples", "count"), [(0, 0), (1, 1), (640, 1), (641, 2), (16_000, 25)])
@pytest.mark.parametrize("kind", ["log_mel", "raw"])
def test_a_token_is_forty_milliseconds(samples, count, kind):
    config = AudioTokens(kind=kind)
    assert tokens(np.zeros(samples, np.float32), config).shape == (count, config.features)


def test_zeros_after_the_end_change_nothing():
    samples = speech_like(0.21)
    padded = np.concatenate([samples, np.zeros(-len(samples) % 640, np.float32)])
    for config in (AudioTokens(), AudioTokens(kind="raw")):
        np.testing.assert_array_equal(tokens(samples, config), tokens(padded, config))


def test_stacked_frames_are_consecutive():
    samples = speech_like(0.2)
    np.testing.assert_array_equal(tokens(samples, AudioTokens())[1], log_mel(samples, AudioTokens())[4:8].reshape(-1))


def test_raw_frames_are_the_samples():
    samples = speech_like(0.1)
    np.testing.assert_array_equal(tokens(samples, AudioTokens(kind="raw")).reshape(-1)[: len(samples)], samples)


def test_sound_over_the_budget_is_refused_with_its_length():
    with pytest.raises(ValueError, match=r"2\.0 s of sound makes 50 tokens, more than max_tokens 10"):
        tokens(np.zeros(2 * RATE, np.float32), AudioTokens(max_tokens=10))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'log_mel', 'usm_mel' or 'raw'"):
        AudioTokens(kind="wave")
