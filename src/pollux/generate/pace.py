"""How long dispatches are, and how much of prompts is read between two of them, so that tokens come about as often as is wanted.

Both follow from how long the dispatches before took: nobody need know how fast a model is on a machine.
"""

from __future__ import annotations

from pollux.generate.decode import CHUNK
from pollux.generate.dispatch import Flight, Kind, row_bucket

MOST_SHARE = 16  # chunks that are read between two dispatches at most


class Pace:
    """seconds: wanted between two dispatches. chunk: tokens that are read at once."""

    def __init__(self, seconds: float, chunk: int):
        self._seconds, self._chunk = seconds, chunk
        self._steps: dict[tuple[Kind, int], int] = {}  # by kind and number of rows
        self.share = chunk  # tokens that may be read between two dispatches

    def steps(self, kind: Kind, rows: int) -> int:
        """Tokens of the next dispatch: one if the host must look at each, else as many as keep to the wanted time."""
        return 1 if kind.constrained else self._steps.get((kind, row_bucket(rows)), CHUNK)

    def follow(self, flight: Flight, written: int, seconds: float) -> None:
        """A dispatch in which rows wrote up to `written` tokens came `seconds` after the one before: the next may be longer, or has to be
        shorter. If prompts were read in that time, it is their share that changes."""
        steps = self.steps(flight.kind, len(flight.rows))
        if flight.read:
            if seconds > 2 * self._seconds:
                self.share = max(self._chunk, self.share // 2)
            elif flight.read >= self.share:
                self.share = min(MOST_SHARE * self._chunk, 2 * self.share)
        elif written == steps:  # not one that was cut short
            changed = steps // 2 if seconds > 2 * self._seconds else steps + 1 if seconds < self._seconds else steps
            self._steps[flight.kind, row_bucket(len(flight.rows))] = min(CHUNK, max(1, changed))
