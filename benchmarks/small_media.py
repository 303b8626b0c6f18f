"""Media that the programs here send: small but whole, made when they are asked for."""

from __future__ import annotations

import io
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "serve"))

from pdf_file import pdf_file  # noqa: E402

TEXT = "A fox met a hare. They walked to the river and came home late.\n"
SOUNDS = {".wav": ("wav", "pcm_s16le"), ".mp3": ("mp3", "mp3"), ".m4a": ("ipod", "aac")}  # container and codec
RATE = 16_000  # samples a second


def picture(kind: str = "PNG") -> bytes:
    """A red disc on a grey ground."""
    rows, columns = np.mgrid[:240, :320]
    disc = (rows - 120) ** 2 + (columns - 160) ** 2 < 80**2
    file = io.BytesIO()
    PIL.Image.fromarray(np.where(disc[..., None], (220, 30, 30), (128, 128, 128)).astype(np.uint8)).save(file, kind)
    return file.getvalue()


def sound(suffix: str, seconds: int) -> bytes:
    """A tone of 440 Hz."""
    container, codec = SOUNDS[suffix]
    wave = np.sin(np.arange(seconds * RATE) * 2 * np.pi * 440 / RATE)
    frame = av.AudioFrame.from_ndarray((wave * 8000).astype(np.int16)[None], format="s16", layout="mono")
    frame.rate = RATE
    file = io.BytesIO()
    with av.open(file, "w", format=container) as written:
        stream = written.add_stream(codec, rate=RATE, layout="mono")
        for one in (frame, None):
            written.mux(stream.encode(one))
    return file.getvalue()


def clip(seconds: int, rate: int) -> bytes:
    """A bar that moves, `rate` frames a second, as MPEG-4."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as written:
        stream: Any = written.add_stream("mpeg4", rate=rate, width=64, height=48, pix_fmt="yuv420p")
        for i in range(seconds * rate):
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[:, i % 8 * 8 : i % 8 * 8 + 8] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, rate)
            written.mux(stream.encode(frame))
        written.mux(stream.encode())
    return file.getvalue()


def pdf() -> bytes:
    """Two pages with a sentence each."""
    return pdf_file([[sentence] for sentence in TEXT.splitlines()[0].split(". ")])
