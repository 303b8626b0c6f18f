"""Sound becomes log-mel frames, `stack` of them a token, or raw samples.

Mel scale: Slaney's (linear to 1 kHz, logarithmic above), triangles of height 1 from 0 Hz to half the rate. HTK's scale is
used for Gemma 4 alone, because its lowest triangles are narrower than one bin of a 25 ms window and would be empty.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import scipy.fft

from pollux.media import MediaError
from pollux.tokens.config import AudioTokens

FLOOR = 1e-5  # of the mel power
CENTRE, SPREAD = -4.0, 4.0  # silence becomes -1.9, loud speech about 1.5
USM_FLOOR = 1e-3  # added to the mel magnitude


def hertz(mel: np.ndarray) -> np.ndarray:
    """Slaney's mel -> Hz: 200/3 Hz per mel up to mel 15 (1 kHz), then a factor 6.4 every 27 mel."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


@functools.lru_cache(maxsize=16)
def mel_filters(rate: int, fft: int, mels: int) -> np.ndarray:
    """float32 [fft/2 + 1, mels] on Slaney's scale, see triangles."""
    top = rate / 2
    top_mel = top * 3 / 200 if top < 1000 else 15 + 27 * math.log(top / 1000) / math.log(6.4)
    return triangles(hertz(np.linspace(0, top_mel, mels + 2)), rate, fft)


@functools.lru_cache(maxsize=16)
def htk_filters(rate: int, fft: int, mels: int) -> np.ndarray:
    """float32 [fft/2 + 1, mels] on HTK's scale, 2595 log10(1 + f / 700)."""
    return triangles(700 * (10 ** (np.linspace(0, 2595 * math.log10(1 + rate / 1400), mels + 2) / 2595) - 1), rate, fft)


def triangles(corners: np.ndarray, rate: int, fft: int) -> np.ndarray:
    """float32 [fft/2 + 1, mels]: triangle m rises from corner m (in Hz) to 1 at corner m + 1 and falls to 0 at corner m + 2."""
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    bins = np.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    return np.maximum(0, np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _hann(window: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)


def num_tokens(samples: int, config: AudioTokens) -> int:
    """Tokens of so many samples; the last one may be partly zeros."""
    if config.kind == "usm_mel":
        return -(-_usm_frames(samples, config) // config.stack)
    return -(-samples // config.samples_per_token)


def coordinates(samples: int, config: AudioTokens) -> np.ndarray:
    """int32 [N, 2]: how many frames of each token are there (the last ones of a sound may not be), and its place in the sound."""
    place = np.arange(num_tokens(samples, config), dtype=np.int32)
    there = np.full_like(place, config.stack)
    if config.kind == "usm_mel":
        there = np.minimum(there, _usm_frames(samples, config) - config.stack * place).astype(np.int32)
    return np.stack([there, place], -1)


def _usm_frames(samples: int, config: AudioTokens) -> int:
    """Windows that end within the sound; the first is centred at its beginning."""
    return max(0, -(-(samples - config.window // 2) // config.hop))


def usm_mel(samples: np.ndarray, config: AudioTokens) -> np.ndarray:
    """ln(mel magnitude + 0.001) of Hann windows: float32 [num_tokens * stack, mels]; zeros follow the last frame.

    samples: float32 [n] in [-1, 1] at config.rate.
    """
    frames = _usm_frames(len(samples), config)
    out = np.zeros((num_tokens(len(samples), config) * config.stack, config.mels), np.float32)
    if frames:
        half = config.window // 2
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(samples, (half, half)), config.window)[:: config.hop][:frames]
        fft = 1 << (config.window - 1).bit_length()
        spectrum = np.abs(scipy.fft.rfft(windows * _hann(config.window), fft))
        out[:frames] = np.log(spectrum @ htk_filters(config.rate, fft, config.mels) + np.float32(USM_FLOOR))
    return out


def log_mel(samples: np.ndarray, config: AudioTokens) -> np.ndarray:
    """(ln(max(mel power, 1e-5)) + 4) / 4 of Hann windows, a window starting every hop.

    samples: float32 [n] in [-1, 1] at config.rate. Returns float32 [num_tokens * stack, mels]; zeros follow the last sample.
    """
    frames = num_tokens(len(samples), config) * config.stack
    if frames == 0:
        return np.zeros((0, config.mels), np.float32)
    padded = np.zeros((frames - 1) * config.hop + config.window, np.float32)
    used = min(len(samples), len(padded))
    padded[:used] = samples[:used]
    windows = np.lib.stride_tricks.sliding_window_view(padded, config.window)[:: config.hop]
    fft = 1 << (config.window - 1).bit_length()
    spectrum = scipy.fft.rfft(windows * _hann(config.window), fft)  # four times as fast as numpy's in float32
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    mel = power @ mel_filters(config.rate, fft, config.mels)
    return (np.log(np.maximum(mel, np.float32(FLOOR))) - np.float32(CENTRE)) / np.float32(SPREAD)


def tokens(samples: np.ndarray, config: AudioTokens) -> np.ndarray:
    """Features of the soft tokens of one sound.

    samples: float32 [n] in [-1, 1] at config.rate. Returns float32 [N, F]: stacked log-mel frames, or in raw mode the samples
    themselves. Raises MediaError if the sound is longer than config.max_tokens.
    """
    count = num_tokens(len(samples), config)
    if count > config.max_tokens:
        seconds = len(samples) / config.rate
        raise MediaError(
            f"{seconds:.1f} s of sound makes {count} tokens, more than max_tokens {config.max_tokens}:"
            f" cut it into pieces of at most {seconds * config.max_tokens / count:.1f} s"
        )
    if config.kind != "raw":
        mel = log_mel(samples, config) if config.kind == "log_mel" else usm_mel(samples, config)
        return mel.reshape(count, config.features)
    padded = np.zeros(count * config.frame, np.float32)
    padded[: len(samples)] = samples
    return padded.reshape(count, config.frame)
