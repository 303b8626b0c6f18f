"""Parts as HTML for the pages of runs and evaluations: text as it is, media inside the page, small enough to be mailed."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
import PIL.Image

from pollux.content import Audio, Image, Part, Text, Video
from pollux.media import encode_audio

SIDE = 256  # pixels of the longer side of a picture, at most
RATE, SECONDS = 16_000, 20  # Hz of a sound, and how much of it
FPS, FRAMES = 2.0, 6  # of a film strip, at most


def show(part: Part) -> str:
    """Markup of one part without links or scripts. Raises MediaError if its file cannot be read."""
    if isinstance(part, Text):
        return f"<p>{html.escape(part.text)}</p>"
    if isinstance(part, Image):
        return _picture(part.pixels())
    if isinstance(part, Audio):
        sound = encode_audio(part.samples(RATE)[: RATE * SECONDS], RATE)
        return f'<audio controls src="{_data_url("audio/wav", sound)}"></audio>'
    if isinstance(part, Video):
        frames, _ = part.frames(FPS, FRAMES)
        return f'<div class="strip">{"".join(map(_picture, frames))}</div>'
    return f"<p>{html.escape(str(part))}</p>"


def _picture(pixels: np.ndarray) -> str:
    picture = PIL.Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f'<img alt="" src="{_data_url("image/png", file.getvalue())}">'


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
