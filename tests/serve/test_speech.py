"""Where speech begins and ends in the sound of a microphone."""

import numpy as np

from pollux.serve.live.speech import Microphone
from pollux.serve.wire.live import ActivityDetection, StartSensitivity

RATE = 16_000  # Hz


def tone(seconds, volume=0.3):
    return (volume * 32767 * np.sin(np.arange(int(seconds * RATE)) * 2 * np.pi * 440 / RATE)).astype("<i2")


def stretches(sound, chunk=160, **settings):
    """What a microphone takes for speech: (samples heard when it ended, samples of it)."""
    microphone, found, heard = Microphone(ActivityDetection(**settings), RATE), [], 0
    for start in range(0, len(sound), chunk):
        heard += chunk
        for begun in microphone.hear(sound[start : start + chunk]):
            if not begun:
                found.append((heard, len(microphone.take())))
    return found, microphone


def test_speech_begins_with_loud_frames_and_ends_with_silence():
    sound = np.concatenate([np.zeros(RATE, np.int16), tone(1.0), np.zeros(2 * RATE, np.int16)])
    for chunk in (77, 160, len(sound)):
        found, microphone = stretches(sound, chunk)
        assert len(found) == 1 and not microphone.speaking
        assert abs(found[0][1] - 2.1 * RATE) <= 640  # 0.3 s before, 1 s of tone, 0.8 s of silence
    assert abs(stretches(sound, silence_duration_ms=200, prefix_padding_ms=0)[0][0][1] - 1.2 * RATE) <= 640


def test_clicks_and_noise_are_no_speech():
    click = np.zeros(2 * RATE, np.int16)
    click[RATE : RATE + 300] = 20_000
    assert stretches(click)[0] == []
    noise = np.random.default_rng(0).normal(0, 100, 2 * RATE).astype(np.int16)
    assert stretches(noise)[0] == []
    quiet = np.concatenate([tone(1.0, volume=0.02), np.zeros(RATE, np.int16)])
    assert stretches(quiet)[0] and not stretches(quiet, start_of_speech_sensitivity=StartSensitivity.START_SENSITIVITY_LOW)[0]
