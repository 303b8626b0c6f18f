"""Who is speaking: sound comes in chunks, and out come the stretches in which somebody spoke.

Loudness alone decides: a stretch begins with enough loud frames in a row and ends with enough quiet ones. Sound is int16 mono.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pollux.serve.wire.live import ActivityDetection, StartSensitivity

FRAME_MS = 20
MOST_SECONDS = 300  # of a stretch; one that goes on is taken to have ended
BEGINNING_FRAMES = 3  # loud ones in a row that are speech, and not a click
SILENCE_MS, PADDING_MS = 800, 300  # where the client does not say
LOUD, LOUD_IF_UNSURE = 0.02, 0.008  # root mean square of full scale: at low sensitivity, and at high, which is usual


class Microphone:
    """What a client's microphone hears. With `detect` off, the client says itself when speech begins and ends."""

    def __init__(self, settings: ActivityDetection, rate: int):
        self.rate, self.detect = rate, not settings.disabled
        low = settings.start_of_speech_sensitivity == StartSensitivity.START_SENSITIVITY_LOW
        self._threshold = LOUD if low else LOUD_IF_UNSURE
        self._silence = math.ceil((SILENCE_MS if settings.silence_duration_ms is None else settings.silence_duration_ms) / FRAME_MS)
        padding = PADDING_MS if settings.prefix_padding_ms is None else settings.prefix_padding_ms
        self._padding = math.ceil(padding / FRAME_MS) + BEGINNING_FRAMES
        self._frame = rate * FRAME_MS // 1000
        self._rest = np.zeros(0, np.int16)  # less than a frame
        self._frames: list[np.ndarray] = []  # of the stretch, or what may become its beginning
        self._loud = self._quiet = 0  # frames in a row
        self.speaking = False

    def hear(self, samples: np.ndarray) -> Iterator[bool]:
        """Take a chunk [n]; True whenever speech begins in it, False whenever it ends: then `take` it."""
        sound = np.concatenate([self._rest, samples])
        count = len(sound) // self._frame
        self._rest = sound[count * self._frame :]
        for frame in sound[: count * self._frame].reshape(count, self._frame):
            self._frames.append(frame)
            if not self.detect:
                del self._frames[: -MOST_SECONDS * 1000 // FRAME_MS if self.speaking else None]
                continue
            loud = math.sqrt(np.mean(np.square(frame / 32768.0))) >= self._threshold
            self._loud, self._quiet = (self._loud + 1, 0) if loud else (0, self._quiet + 1)
            if not self.speaking:
                del self._frames[: -self._padding]
                if self._loud >= BEGINNING_FRAMES:
                    self.speaking = True
                    yield True
            elif self._quiet >= self._silence or len(self._frames) * FRAME_MS >= MOST_SECONDS * 1000:
                yield False

    def begin(self) -> None:
        """The client says that speech begins."""
        self._frames, self.speaking = [], True

    def take(self) -> np.ndarray:
        """The stretch [n], which ends with this."""
        sound = np.concatenate([*self._frames, self._rest]) if self.speaking else np.zeros(0, np.int16)
        self._frames, self._rest, self.speaking = [], np.zeros(0, np.int16), False
        self._loud = self._quiet = 0
        return sound
