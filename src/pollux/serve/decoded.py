"""Sounds, clips and pages of PDFs that were decoded lately, by their content: in a chat they come again with every turn, and decoding
takes seconds.

What is kept is what the model looks at, the frames and samples at its own rates, so that a prompt is the same with and without it.
"""

from __future__ import annotations

import collections
import hashlib
import os
import threading
from collections.abc import Hashable

from pollux import content
from pollux.content import Audio, Image, Part, Video
from pollux.media import Limits, Page, VideoArray
from pollux.tokens.config import TokensConfig

ROOM = 256 << 20  # bytes
MOST_PAGES = 24  # of a request that are kept; of more, each is drawn when its turn comes, so that never all are in memory


class DecodedMedia:
    """Those used last, in at most `room` bytes. Its methods block and may be called from any thread."""

    def __init__(self, room: int = ROOM):
        self._room, self._used = room, 0
        self._kept: collections.OrderedDict[Hashable, tuple[Part, int]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def turns(self, turns: list[content.Content], config: TokensConfig, limits: Limits) -> list[content.Content]:
        """The same turns with sounds, clips and pages in memory, as a model with this config reads them. Raises MediaError."""
        names: dict[int, Hashable] = {}  # of the files of these turns by their identity: the pages of a PDF share one
        many = sum(_is_page(part) for turn in turns for part in turn.parts) > MOST_PAGES
        made = []
        for turn in turns:
            parts = (part if many and _is_page(part) else self._part(part, names, config, limits) for part in turn.parts)
            made.append(content.Content(turn.role, tuple(parts)))
        return made

    def _part(self, part: Part, names: dict[int, Hashable], config: TokensConfig, limits: Limits) -> Part:
        file: bytes | str | os.PathLike
        section: tuple[Hashable, ...]
        if isinstance(part, Image) and isinstance(part.source, Page):
            file, section = part.source.file, (part.source.number,)
        elif isinstance(part, Audio | Video) and isinstance(part.source, bytes | str | os.PathLike):
            file, section = part.source, _section(part, config)
        else:
            return part
        if id(file) not in names:
            names[id(file)] = hashlib.sha256(file).digest() if isinstance(file, bytes) else os.fspath(file)
        key = (names[id(file)], type(part), section, limits)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        made, size = _decoded(part, config, limits)
        with self._lock:
            if key not in self._kept and size <= self._room:
                self._kept[key] = made, size
                self._used += size
            while self._used > self._room:
                self._used -= self._kept.popitem(last=False)[1][1]
        return made


def _is_page(part: Part) -> bool:
    return isinstance(part, Image) and isinstance(part.source, Page)


def _section(part: Audio | Video, config: TokensConfig) -> tuple[Hashable, ...]:
    """What is taken of a file, and how."""
    if isinstance(part, Audio):
        return (config.audio.rate,)
    return (part.start, part.end, part.fps, config.video.fps, config.video.max_frames, config.video.sound, config.audio.rate)


def _decoded(part: Image | Audio | Video, config: TokensConfig, limits: Limits) -> tuple[Part, int]:
    """The part in memory, and its bytes there."""
    if isinstance(part, Image):
        pixels = part.pixels(limits)
        return Image(pixels), pixels.nbytes
    return _audio(part, config, limits) if isinstance(part, Audio) else _video(part, config, limits)


def _audio(part: Audio, config: TokensConfig, limits: Limits) -> tuple[Part, int]:
    samples = part.samples(config.audio.rate, limits)
    return Audio(samples, config.audio.rate), samples.nbytes


def _video(part: Video, config: TokensConfig, limits: Limits) -> tuple[Part, int]:
    frames, times = part.frames(config.video.fps, config.video.max_frames, limits)
    sound = part.samples(config.audio.rate, limits) if config.video.sound else None
    if sound is None or not len(sound):
        return Video(VideoArray(frames, times), fps=part.fps), frames.nbytes
    return Video(VideoArray(frames, times, sound, config.audio.rate), fps=part.fps), frames.nbytes + sound.nbytes
