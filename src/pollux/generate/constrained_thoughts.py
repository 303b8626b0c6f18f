"""Thoughts in an answer that keeps to a constraint: what the model thinks is no part of what a grammar follows.

Shapes: V vocabulary of the model.
"""

from __future__ import annotations

import numpy as np

from pollux.generate.constrain import GrammarConstraint
from pollux.tokens.vocabulary import Vocabulary


class Thoughtful:
    """A Constraint of requests.py around that of a grammar: the model may think before the answer, and where the grammar has free text."""

    def __init__(self, inner: GrammarConstraint, vocabulary: Vocabulary, vocab_size: int):
        self._inner, self._begun, self._thinks = inner, False, False
        self._opening, self._closing = vocabulary.specials["<thought>"], vocabulary.specials["</thought>"]
        self._within = np.zeros(vocab_size, bool)
        self._within[: vocabulary.size] = True
        self._within[list(vocabulary.special_ids)] = False
        self._within[self._closing] = True

    def fresh(self) -> Thoughtful:
        return self._with(self._inner.fresh(), _begun=False, _thinks=False)

    def copy(self) -> Thoughtful:
        """Another one at the same place."""
        return self._with(self._inner.copy())

    def allowed(self) -> np.ndarray:
        """bool [V]. Raises ValueError where the grammar is too much work to follow."""
        if self._thinks:
            return self._within
        mask = self._inner.allowed()
        if not self._begun:
            mask = mask.copy()
            mask[self._opening] = True
        return mask

    def accept(self, token: int) -> None:
        """Step over an id. Raises ValueError if it was not allowed."""
        if self._thinks:
            self._thinks = token != self._closing
        elif token == self._opening:
            self._thinks = True
        else:
            self._inner.accept(token)
            self._begun = True

    def _with(self, inner: GrammarConstraint, **changes: bool) -> Thoughtful:
        made = object.__new__(Thoughtful)
        made.__dict__.update(self.__dict__, _inner=inner, **changes)
        return made
