"""Constrained answers that end within their tokens: shortly before these run out, the shortest way to an end that was found is taken.

A grammar alone says what may come next and not what leads out of it, so that a model in the middle of a long string leaves half a JSON
behind. The way out is found by stepping a copy of the constraint along tokens that close something before those that open something.
Shapes: V vocabulary of the model.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import numpy as np

from pollux.generate.constrain import GrammarConstraint
from pollux.generate.constrained_thoughts import Thoughtful
from pollux.tokens.calls import QUOTE
from pollux.tokens.vocabulary import Vocabulary

LONGEST = 1024  # tokens of a way out that is looked for
SLACK = 8  # the share of the tokens, 1 / SLACK, that is kept free for what a single token may open
MOST_SLACK = 4  # the same where longer ways out were seen, as from within an element of a list
_CLOSERS, _COMMAS, _QUOTES, _DIGITS, _OPENERS = "}]", ",:", '"', "0123456789", "{["
_SPACES = "\u0120\u010a\u0109\u010d\u2581 \n\t\r"  # a space and a new line as tokenizers spell them, too


class Ending:
    """A Constraint of requests.py around that of a grammar, for answers of at most `most` tokens.

    Where the answer may end at once, as in free text between calls, nothing is done.
    """

    def __init__(self, inner: GrammarConstraint | Thoughtful, vocabulary: Vocabulary, vocab_size: int, most: int):
        self._inner, self._order, self._stops = inner, _order(vocabulary, vocab_size), frozenset(vocabulary.stops)
        self._most, self._left, self._look_at = most, most, most
        self._way: list[int] = []
        self._closing = False
        self._first = self._mask = inner.allowed()
        self._slack = self._first_slack = min(len(self._way_out() or ()), most // SLACK)

    def fresh(self) -> Ending:
        copy = object.__new__(Ending)
        again = {"_left": self._most, "_look_at": self._most, "_slack": self._first_slack, "_way": [], "_closing": False}
        copy.__dict__.update(self.__dict__, _inner=self._inner.fresh(), _mask=self._first, **again)
        return copy

    def allowed(self) -> np.ndarray:
        return self._mask

    def accept(self, token: int) -> None:
        """Step over an id. Raises ValueError if it was not allowed, or if it is too much work to say what may follow it."""
        self._step(token)
        if self._way:
            self._mask = np.zeros(len(self._order), bool)
            self._mask[self._way[0]] = True
        elif token not in self._stops:
            self._mask = self._inner.allowed()

    def closed(self, ids: Iterable[int]) -> bool:
        """Whether it has come to that in a whole answer."""
        again = self.fresh()
        for i in ids:
            if i not in self._stops:
                again._step(i)
        return again._closing

    def _step(self, token: int) -> None:
        self._inner.accept(token)
        self._left -= 1
        if self._way:
            self._way = self._way[1:]
        elif token not in self._stops and self._left <= self._look_at:
            self._look()

    def _look(self) -> None:
        """Take the way out if it is time, else say when to look again: half way to where it would be, if the way stays as long."""
        way = self._way_out()
        self._slack = max(self._slack, min(len(way or ()), self._most // MOST_SLACK))
        spare = self._left - len(way or ()) - self._slack
        if way is not None and len(way) > 1 and spare <= 0:
            self._way, self._closing = way, True
        self._look_at = self._left - max(1, spare // 2)

    def _way_out(self) -> list[int] | None:
        """Ids up to the end of the answer; None if none was found."""
        walker = self._inner.copy()
        way: list[int] = []
        while len(way) < LONGEST:
            try:
                mask = walker.allowed()
            except ValueError:  # the grammar is too much work there; the answer itself may go elsewhere
                return None
            token = int(np.argmin(np.where(mask, self._order, np.iinfo(np.int32).max)))
            if not mask[token]:
                return None
            way.append(token)
            if token in self._stops:
                return way
            walker.accept(token)
        return None


def _order(vocabulary: Vocabulary, vocab_size: int) -> np.ndarray:
    """int32 [V], the lower the sooner a token leads to an end; made once."""
    made = _orders.setdefault(vocabulary, {})
    if vocab_size not in made:
        order = np.full(vocab_size, 9 << 16, np.int32)
        for text, i in vocabulary.tokenizer.get_vocab(with_added_tokens=True).items():
            order[i] = _rank(text)
        for i in vocabulary.special_ids:
            order[i] = 9 << 16
        for name, rank in (("</thought>", 0), (QUOTE, 1), ("</call>", 2)):
            found = vocabulary.specials.get(name, vocabulary.tokenizer.token_to_id(name))
            if found is not None:
                order[found] = rank << 16
        order[list(vocabulary.stops)] = 0
        made[vocab_size] = order
    return made[vocab_size]


def _rank(text: str) -> int:
    """What closes comes first, then what goes on, at last what opens; of letters and closers the longest, of others the shortest.

    A quote comes before a bracket, which inside a string would be a letter.
    """
    first, short, long = text[:1], min(len(text), 999), 999 - min(len(text), 999)
    for rank, letters, length in ((1, _QUOTES, short), (2, _CLOSERS, long), (3, _COMMAS, short), (5, _DIGITS, short), (7, _OPENERS, short)):
        if first and first in letters:
            return (rank << 16) + length
    return ((8 if first in _SPACES else 4 if text.isalpha() else 6) << 16) + long


_orders: weakref.WeakKeyDictionary[Vocabulary, dict[int, np.ndarray]] = weakref.WeakKeyDictionary()
