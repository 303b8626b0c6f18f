"""Sound: files through libsndfile, everything else (m4a, aac, the track of a video) through FFmpeg, to mono at any rate.

Shape: n samples.
"""

from __future__ import annotations

import io
import os
import re
from typing import BinaryIO

import av
import numpy as np
import soundfile
import soxr
from av.container import InputContainer

from pollux.media.container import FORMATS, open_container, start_time, survey
from pollux.media.source import DEFAULT_LIMITS, Limits, MediaError, check_samples, check_seconds, naming, open_source

_BLOCK = 1 << 16  # frames of a file decoded at a time
_GAP = 0.05  # seconds; smaller differences between a track's clock and its samples are rounding
_DATA_SIZE = re.compile(r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
_NO_OGG_END = re.compile(r"^ *Ogg ?: (?:Junk after the last page|File ended unexpectedly)", re.MULTILINE)
_STREAMED = 0x7FFFF000  # a program that writes to a pipe puts a size of this order for "unknown"
_UNKNOWN = (1 << 63) - 1  # frames that libsndfile reports of FLAC without a length; it cannot read such a file to its end


def decode_audio(
    source: bytes | str | os.PathLike | np.ndarray, source_rate: int | None, rate: int, limits: Limits = DEFAULT_LIMITS
) -> np.ndarray:
    """A sound as mono float32 [n] in [-1, 1] at `rate` Hz; channels are averaged.

    `source_rate` belongs to an array (float [n] or [n, channels]) and is ignored for files. A video file gives its sound.
    Raises MediaError.
    """
    with naming("audio", source) as name:
        if isinstance(source, np.ndarray):
            return mono_array(name, source, source_rate, rate, limits)
        with open_source(name, source, limits) as file:
            try:
                sound = soundfile.SoundFile(file)
            except soundfile.LibsndfileError:
                return _through_ffmpeg(name, file, FORMATS, rate, limits)
            with sound:
                if sound.format == "FLAC" and sound.frames == _UNKNOWN:
                    return _through_ffmpeg(name, file, "flac", rate, limits)
                return _resample(name, _read(name, sound, limits), sound.samplerate, rate)


def encode_audio(samples: np.ndarray, rate: int) -> bytes:
    """Float [n] or [n, channels] in [-1, 1] as a mono WAV file of 16 bits. Raises MediaError."""
    with naming("audio", samples) as name:
        file = io.BytesIO()
        soundfile.write(file, mono_array(name, samples, rate, rate, DEFAULT_LIMITS), rate, format="WAV", subtype="PCM_16")
        return file.getvalue()


def mono_array(name: str, samples: np.ndarray, source_rate: int | None, rate: int, limits: Limits) -> np.ndarray:
    """Samples in memory, float [n] or [n, channels] at source_rate, as mono float32 [n] at `rate`. Raises MediaError."""
    if samples.ndim not in (1, 2) or not np.issubdtype(samples.dtype, np.floating):
        raise MediaError(f"{name} must have samples float [n] or [n, channels], not {samples.dtype} {list(samples.shape)}")
    if source_rate is None or source_rate < 1:
        raise MediaError(f"{name} needs the rate of its samples in Hz")
    check_seconds(name, len(samples) / source_rate, limits)
    return _resample(name, samples if samples.ndim == 1 else samples.mean(axis=1), source_rate, rate)


def decode_track(name: str, container: InputContainer, origin: float, rate: int, limits: Limits) -> np.ndarray:
    """The first audio track as mono float32 [n] at `rate` Hz, sample 0 at `origin` seconds on the container's clock.

    What lies before the origin is cut; a late start and gaps become silence. Raises MediaError.
    """
    stream = container.streams.audio[0]
    source_rate = stream.codec_context.sample_rate
    converter = av.AudioResampler(format="fltp", rate=source_rate)
    blocks: list[np.ndarray] = []
    length = 0
    for frame in container.decode(stream):
        start = length if frame.time is None else round((frame.time - origin) * source_rate)
        if start > length + _GAP * source_rate:
            check_samples(name, start, source_rate, limits)
            blocks.append(np.zeros(start - length, np.float32))
            length = start
        for converted in converter.resample(frame):
            block = converted.to_ndarray().mean(axis=0)[max(-start, 0) :]
            blocks.append(block)
            length += len(block)
        check_samples(name, length, source_rate, limits)
    return _resample(name, np.concatenate(blocks or [np.zeros(0, np.float32)]), source_rate, rate)


def _through_ffmpeg(name: str, file: BinaryIO, formats: str, rate: int, limits: Limits) -> np.ndarray:
    """The first audio track of a file as mono float32 [n] at `rate` Hz. Raises MediaError."""
    survey(name, file, "audio", limits, formats)
    with open_container(name, file, formats) as container:
        return decode_track(name, container, start_time(container.streams.audio[0]), rate, limits)


def _resample(name: str, samples: np.ndarray, source_rate: int, rate: int) -> np.ndarray:
    """Mono [n] at source_rate as float32 [n * rate / source_rate], clipped to [-1, 1]. Raises MediaError for NaN and infinity."""
    if not np.isfinite(samples).all():
        raise MediaError(f"{name} holds samples that are not finite numbers")
    return np.clip(soxr.resample(samples.astype(np.float32), source_rate, rate), -1, 1)


def _read(name: str, sound: soundfile.SoundFile, limits: Limits) -> np.ndarray:
    """All of an open file, channels averaged: float32 [n]. Block by block, so that memory does not grow with the channels.

    Raises MediaError for a truncated file: libsndfile would shorten most formats in silence, but its log tells.
    """
    check_samples(name, sound.frames, sound.samplerate, limits)
    size = _DATA_SIZE.search(sound.extra_info)
    if _NO_OGG_END.search(sound.extra_info) or (size and int(size[2]) < int(size[1]) < _STREAMED):
        raise MediaError(f"{name} is truncated")
    blocks = [np.zeros(0, np.float32)]
    length = 0
    while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block.mean(axis=1))
        length += len(block)
        check_samples(name, length, sound.samplerate, limits)
    if length < sound.frames:
        raise MediaError(f"{name} is truncated: it holds {length} of {sound.frames} samples")
    return np.concatenate(blocks)
