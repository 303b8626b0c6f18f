"""Sounds and clips that were decoded lately, by their content: in a chat they come again with every turn, and decoding takes seconds.

What is kept is what the model looks at, the frames and samples at its own rates, so that a prompt is the same with and without it.
"""

from __future__ import annotations

import collections
import hashlib
import os
import threading
from collections.abc import Hashable

from pollux import content
from pollux.content import Audio, Part, Video
from pollux.media import Limits, VideoArray
from pollux.tokens.config import TokensConfig

ROOM = 256 << 20  # bytes


class DecodedMedia:
    """Those used last, in at most `room` bytes. Its methods block and may be called from any thread."""

    def __init__(self, room: int = ROOM):
        self._room, self._used = room, 0
        self._kept: collections.OrderedDict[Hashable, tuple[Part, int]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def turns(self, turns: list[content.Content], config: TokensConfig, limits: Limits) -> list[content.Content]:
        """The same turns with sounds and clips in memory, as a model with this config reads them. Raises MediaError."""
        return [content.Content(turn.role, tuple(self._part(part, config, limits) for part in turn.parts)) for turn in turns]

    def _part(self, part: Part, config: TokensConfig, limits: Limits) -> Part:
        if not isinstance(part, Audio | Video) or not isinstance(part.source, bytes | str | os.PathLike):
            return part
        name: Hashable = hashlib.sha256(part.source).digest() if isinstance(part.source, bytes) else os.fspath(part.source)
        section: Hashable = None
        if isinstance(part, Video):
            section = (part.start, part.end, part.fps, config.video.fps, config.video.max_frames, config.video.sound)
        key = (name, type(part), section, config.audio.rate, limits)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        made, size = _audio(part, config, limits) if isinstance(part, Audio) else _video(part, config, limits)
        with self._lock:
            if key not in self._kept and size <= self._room:
                self._kept[key] = made, size
                self._used += size
            while self._used > self._room:
                self._used -= self._kept.popitem(last=False)[1][1]
        return made


def _audio(part: Audio, config: TokensConfig, limits: Limits) -> tuple[Part, int]:
    samples = part.samples(config.audio.rate, limits)
    return Audio(samples, config.audio.rate), samples.nbytes


def _video(part: Video, config: TokensConfig, limits: Limits) -> tuple[Part, int]:
    frames, times = part.frames(config.video.fps, config.video.max_frames, limits)
    sound = part.samples(config.audio.rate, limits) if config.video.sound else None
    if sound is None or not len(sound):
        return Video(VideoArray(frames, times), fps=part.fps), frames.nbytes
    return Video(VideoArray(frames, times, sound, config.audio.rate), fps=part.fps), frames.nbytes + sound.nbytes
