"""The constraint on an answer that is a drawing and nothing else.

What is inside a drawing is the business of grammar.py; here only its opening and what follows it. Shapes: V vocabulary of the model.
"""

from __future__ import annotations

import numpy as np

from pollux.tokens.vocabulary import Vocabulary


class OneDrawing:
    """A drawing and the end of the turn: a Constraint of requests.py. Raises ValueError if the model does not draw."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int):
        if "<draw>" not in vocabulary.specials or not vocabulary.code_levels:
            raise ValueError("this model does not draw")
        self._opening, self._closing = vocabulary.specials["<draw>"], vocabulary.specials["</draw>"]
        self._begin, self._inside, self._end = np.zeros(vocab_size, bool), np.ones(vocab_size, bool), np.zeros(vocab_size, bool)
        self._begin[self._opening] = True
        self._inside[list(vocabulary.stops)] = False
        self._end[list(vocabulary.stops)] = True
        self._now = self._begin

    def fresh(self) -> OneDrawing:
        copy = object.__new__(OneDrawing)
        copy.__dict__.update(self.__dict__, _now=self._begin)
        return copy

    def allowed(self) -> np.ndarray:
        return self._now

    def accept(self, token: int) -> None:
        if token == self._opening:
            self._now = self._inside
        elif token == self._closing:
            self._now = self._end
