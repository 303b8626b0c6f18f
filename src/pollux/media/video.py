"""Video: frames by their own timestamps and the sound that belongs to them, and a clip in memory to a lossless file.

Shapes: F frames, H height, W width, n samples. Time 0 is the first frame.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer

from pollux.media.container import open_container, start_time, survey
from pollux.media.sound import decode_track, mono_array
from pollux.media.source import DEFAULT_LIMITS, Limits, MediaError, check_pixels, check_seconds, naming, open_source

_MILLISECOND = Fraction(1, 1000)
_WRITERS: dict[str, tuple[str, str, dict[str, str], str]] = {  # format, codec of the frames with its options, codec of the sound
    "video/x-matroska": ("matroska", "ffv1", {}, "pcm_s16le"),
    "video/mp4": ("mp4", "libx264", {"crf": "8", "bf": "0"}, "aac"),
}
_CLOCK = 6e-4  # seconds; Matroska rounds times to milliseconds


@dataclass(frozen=True, eq=False)
class VideoArray:
    """A clip in memory. Times are in seconds, ascending; the sound begins with the first frame."""

    frames: np.ndarray  # uint8 [F, H, W, 3]
    times: np.ndarray  # float [F]
    audio: np.ndarray | None = None  # float [n] or [n, channels]
    rate: int | None = None  # Hz, of the sound


def decode_video(
    source: bytes | str | os.PathLike | VideoArray,
    fps: float,
    max_frames: int,
    limits: Limits = DEFAULT_LIMITS,
    section: tuple[float, float] = (0.0, math.inf),
) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a clip, upright: uint8 RGB [F, H, W, 3] and their times float64 [F] in seconds from the first frame.

    For every time k / fps up to the last frame this is the latest frame at or before it, by the frames' own timestamps.
    If that makes more than `max_frames`, that many times are spread evenly over the clip instead. With fps = 0 the frames are spread
    evenly by their number: of n frames number i n / max_frames, rounded down, or all if there are no more.
    section: only what is shown from the first to before the second of two times, as if it were the whole clip. Raises MediaError.
    """
    if not fps >= 0 or max_frames < 1:
        raise ValueError(f"fps {fps} must not be negative and max_frames {max_frames} must be positive")
    with naming("video", source) as name:
        if isinstance(source, VideoArray):
            times = _check_array(name, source, limits)
            wanted = _wanted(name, times, fps, max_frames, section)
            _check_bytes(name, len(wanted) * source.frames[0].nbytes, limits)
            return source.frames[np.searchsorted(times, wanted + _CLOCK, side="right") - 1], wanted - section[0]
        with open_source(name, source, limits) as file:
            wanted = _wanted(name, survey(name, file, "video", limits), fps, max_frames, section)
            with open_container(name, file) as container:
                return _pick(name, container, wanted, limits), wanted - section[0]


def decode_video_sound(source: bytes | str | os.PathLike | VideoArray, rate: int, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """The sound of a clip as mono float32 [n] in [-1, 1] at `rate` Hz, sample 0 at the first frame; n = 0 without sound.

    Raises MediaError.
    """
    with naming("video", source) as name:
        if isinstance(source, VideoArray):
            _check_array(name, source, limits)
            if source.audio is None:
                return np.zeros(0, np.float32)
            return mono_array(name, source.audio, source.rate, rate, limits)
        with open_source(name, source, limits) as file:
            with open_container(name, file) as container:
                if not container.streams.audio:
                    return np.zeros(0, np.float32)
            survey(name, file, "audio", limits)
            with open_container(name, file) as container:
                first = container.streams.video or container.streams.audio
                return decode_track(name, container, start_time(first[0]), rate, limits)


def encode_video(video: VideoArray, mime_type: str = "video/x-matroska") -> bytes:
    """A clip as a lossless Matroska file (FFV1, mono 16-bit PCM), or as an MP4 that every player shows ("video/mp4": H.264 and AAC, colours
    at half the resolution if both sides are even); times count from the first frame, in whole milliseconds.

    Raises MediaError for arrays that are no clip, ValueError for another type.
    """
    if mime_type not in _WRITERS:
        raise ValueError(f"a clip is written as {' or '.join(_WRITERS)}, not as {mime_type!r:.80}")
    kind, codec, options, sound_codec = _WRITERS[mime_type]
    file = io.BytesIO()
    with naming("video", video) as name, av.open(file, "w", format=kind, options={"max_interleave_delta": "0"}) as container:
        times = _check_array(name, video, DEFAULT_LIMITS)
        height, width = video.frames.shape[1:3]
        layout = "bgr0" if codec == "ffv1" else "yuv444p" if height % 2 or width % 2 else "yuv420p"
        pictures = container.add_stream(codec, width=width, height=height, pix_fmt=layout, options=options)
        pictures.codec_context.time_base = _MILLISECOND
        frames = [av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24") for pixels in video.frames]
        for frame, time in zip(frames, times, strict=True):
            frame.pts, frame.time_base = round(time * 1000), _MILLISECOND
        tracks: list[tuple[Any, list[Any]]] = [(pictures, frames)]
        if video.audio is not None:
            rate = video.rate or 0
            samples = mono_array(name, video.audio, rate, rate, DEFAULT_LIMITS)
            sound = av.AudioFrame.from_ndarray(np.rint(samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
            sound.rate, sound.pts = rate, 0
            tracks.append((container.add_stream(sound_codec, rate=rate, layout="mono"), [sound]))
        for stream, raw in tracks:
            for block in [*raw, None]:
                container.mux(stream.encode(block))
    return file.getvalue()


def _check_array(name: str, video: VideoArray, limits: Limits) -> np.ndarray:
    """The clip's times counted from its first frame: float64 [F]. Raises MediaError."""
    frames, times = video.frames, np.asarray(video.times, np.float64)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) == 0:
        raise MediaError(f"{name} must have frames uint8 [F, height, width, 3], F > 0, not {frames.dtype} {list(frames.shape)}")
    if times.shape != (len(frames),) or not (np.diff(times) > 0).all():
        raise MediaError(f"{name} must have one time per frame, each later than the one before")
    check_pixels(name, frames.shape[2], frames.shape[1], limits)
    check_seconds(name, times[-1] - times[0], limits)
    if len(frames) > limits.max_frames:
        raise MediaError(f"{name} has more than the limit of {limits.max_frames} frames")
    return times - times[0]


def _check_bytes(name: str, size: int, limits: Limits) -> None:
    if size > limits.max_bytes:
        raise MediaError(f"{name} gives frames of {size} bytes, more than the limit of {limits.max_bytes}")


def _wanted(name: str, times: np.ndarray, fps: float, max_frames: int, section: tuple[float, float]) -> np.ndarray:
    """The times at which frames are wanted, for a clip whose frames are at `times`, see decode_video. Raises MediaError."""
    start, end = section
    if start > times[-1] + _CLOCK:
        raise MediaError(f"{name} ends after {times[-1]:g} seconds, before the section from {start:g} seconds begins")
    times = times[times < end - _CLOCK]
    if start > 0:  # the frame that is shown when the section begins is its first
        times = np.concatenate([[start], times[times > start + _CLOCK]])
    if not fps:
        number = min(max_frames, len(times))
        return times[np.arange(number) * len(times) // number]
    number = int((times[-1] - start + _CLOCK) * fps) + 1
    return start + np.arange(number) / fps if number <= max_frames else np.linspace(start, times[-1], max_frames)


def _pick(name: str, container: InputContainer, wanted: np.ndarray, limits: Limits) -> np.ndarray:
    """The frames shown at the wanted times (ascending from 0): uint8 [len(wanted), H, W, 3]; all take the size of the first."""
    picked: list[np.ndarray] = []
    for frame, until in _shown(container):
        check_pixels(name, frame.width, frame.height, limits)
        _check_bytes(name, len(wanted) * frame.width * frame.height * 3, limits)
        repeats = int(np.searchsorted(wanted, until - _CLOCK)) - len(picked)
        if repeats > 0:
            if not picked:
                width, height = frame.width, frame.height
            pixels = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
            picked.extend([np.rot90(pixels, round(frame.rotation / 90))] * repeats)
        if len(picked) == len(wanted):
            break
    if not picked:
        raise MediaError(f"{name} is broken: none of its frames can be decoded")
    return np.stack(picked)


def _shown(container: InputContainer) -> Iterator[tuple[av.VideoFrame, float]]:
    """Every frame with the time at which the next one takes its place (never, for the last)."""
    stream = container.streams.video[0]
    held, time = None, 0.0
    for frame in container.decode(stream):
        if frame.time is not None:
            time = max(time, frame.time - start_time(stream))
        if held is not None:
            yield held, time
        held = frame
    if held is not None:
        yield held, math.inf
