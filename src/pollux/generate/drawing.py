"""The constraint on an answer that is drawings and nothing else: a picture, or the frames of a film.

What is inside a drawing is the business of grammar.py; here only its opening and what follows it. Shapes: V vocabulary of the model.
"""

from __future__ import annotations

import numpy as np

from pollux.tokens.vocabulary import Vocabulary


class Drawings:
    """From `least` to `most` drawings, as the model likes, and the end of the turn: a Constraint of requests.py. Raises ValueError if the
    model does not draw."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, least: int = 1, most: int = 1):
        assert 1 <= least <= most
        if "<draw>" not in vocabulary.specials or not vocabulary.code_levels:
            raise ValueError("this model does not draw")
        self._least, self._most, self._drawn = least, most, 0
        self._opening, self._closing = vocabulary.specials["<draw>"], vocabulary.specials["</draw>"]
        self._begin, self._inside, self._end = np.zeros(vocab_size, bool), np.ones(vocab_size, bool), np.zeros(vocab_size, bool)
        self._begin[self._opening] = True
        self._inside[list(vocabulary.stops)] = False
        self._end[list(vocabulary.stops)] = True
        self._now = self._begin

    def fresh(self) -> Drawings:
        copy = object.__new__(Drawings)
        copy.__dict__.update(self.__dict__, _now=self._begin, _drawn=0)
        return copy

    def allowed(self) -> np.ndarray:
        return self._now

    def accept(self, token: int) -> None:
        if token == self._opening:
            self._now = self._inside
        elif token == self._closing:
            self._drawn += 1
            may_end, may_go_on = self._drawn >= self._least, self._drawn < self._most
            self._now = self._begin | self._end if may_end and may_go_on else self._begin if may_go_on else self._end
