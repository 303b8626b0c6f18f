"""Dispatches: rows of a kind become a state on the device, write a few tokens there, and what they wrote comes back.

Rows of a kind share a compiled program. A dispatch that goes on with the rows of the one before takes its state where it is, so that it
can start before the host has seen what that one wrote.
Shapes: B rows, R = B or 2 B rows of the cache (guidance), V vocabulary.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pollux.generate.decode import CHUNK, State, Written, decode
from pollux.generate.drafter import Drafter, DraftMemory, DraftModel
from pollux.generate.grammar import Grammar
from pollux.generate.memory import Memory
from pollux.generate.requests import Top
from pollux.generate.rows import Row, allowed_ids, excluded_ids, samplers
from pollux.generate.speculate import Speculation, speculate
from pollux.model.cache import Cache
from pollux.tokens.vocabulary import Vocabulary


@dataclass(frozen=True)
class Kind:
    """What rows of a dispatch have in common."""

    guided: bool
    penalized: bool
    drafted: bool
    constrained: bool  # a token a dispatch, since the host says which come next

    @classmethod
    def of(cls, row: Row) -> Kind:
        return cls(row.unconditional is not None, row.is_penalized, row.is_drafted, row.constraint is not None)


@dataclass(frozen=True, eq=False)
class Flight:
    """A dispatch on its way. Row i of the state is rows[i]; those after them are spare."""

    kind: Kind
    rows: tuple[Row, ...]
    state: State | Speculation
    written: Written
    launched_at: float  # time.perf_counter()


class Dispatcher:
    """Sends rows of one model to the device. draft: the memory of the model that drafts, if one does."""

    def __init__(self, memory: Memory, grammar: Grammar, vocabulary: Vocabulary, drafter: Drafter | None, draft: Memory | None):
        self.memory, self.draft = memory, draft
        self._grammar, self._vocabulary, self._drafter = grammar, vocabulary, drafter

    @property
    def drafts(self) -> bool:
        return self._drafter is not None

    @property
    def ahead(self) -> int:
        """Most tokens that a dispatch adds to a row."""
        return CHUNK + (self._drafter.length if self._drafter else 0)

    def launch(self, kind: Kind, rows: Sequence[Row], before: Flight | None, steps: int) -> Flight:
        """Let rows that have pages for it write up to `steps` tokens; all of them read on from `before` if that is given."""
        slots = max(min(row.length + 2 * self.ahead, row.longest) for row in rows)
        return self._launch(kind, rows, row_bucket(len(rows)), slots, before, steps)

    def programs(self, rows: int, longest: int) -> list[Callable[[], None]]:
        """What compiles the programs for up to so many plain rows of up to so many tokens, the likely ones first."""
        sizes = sorted({row_bucket(number) for number in range(1, rows + 1)})
        made: list[Callable[[], None]] = []
        for slots in self.memory.all_widths(longest):
            made += [functools.partial(self.memory.warm, shape, slots) for shape in self.memory.shapes()]
            made += [functools.partial(self.warm, size, slots) for size in sizes]
        return made

    def warm(self, size: int, slots: int) -> None:
        """Compile the program of so many plain rows with so many tokens."""
        flight = self._launch(Kind(False, False, self.drafts, False), [], size, slots, None, 0)
        flight.written.ids.block_until_ready()

    def _launch(self, kind: Kind, rows: Sequence[Row], size: int, slots: int, before: Flight | None, steps: int) -> Flight:
        state = self._fresh(kind, rows, size, slots) if before is None else self._again(before, size, slots)
        ended = np.ones(size, bool)
        ended[: len(rows)] = [bool(row.answer.finish_reason) or row.lost for row in rows]
        params, config, launched_at = self.memory.params, self.memory.config, time.perf_counter()
        if isinstance(state, State):
            after, written = decode(params, config, self._grammar, state, ended, np.int32(steps), np.bool_(any(map(wants_top, rows))))
            self.memory.cache = after.cache.pages
            return Flight(kind, tuple(rows), after, written, launched_at)
        assert self._drafter is not None
        drafted, written = speculate(params, config, self._drafter, self._grammar, state, ended, np.int32(steps))
        self.memory.cache = drafted.state.cache.pages
        if self.draft is not None:
            self.draft.cache = drafted.memory.cache.pages
        return Flight(kind, tuple(rows), drafted, written, launched_at)

    def _fresh(self, kind: Kind, rows: Sequence[Row], size: int, slots: int) -> State | Speculation:
        spare = size - len(rows)
        vocab_size = self.memory.config.vocab_size

        def column(values: list[int], fill: int = 0) -> np.ndarray:
            return np.array(values + [fill] * spare, np.int32)

        position = column([row.length - 1 for row in rows])
        if kind.guided:
            position = np.concatenate([position, column([row.unconditional_position for row in rows])])
        state = State(
            cache=self._view(kind, rows, size, slots),
            sampler=samplers(rows, spare, self._vocabulary, vocab_size),
            token=column([row.pending for row in rows]),
            position=position,
            drawing=column([row.drawing for row in rows]),
            left=column([row.longest - row.length for row in rows]),
            guidance=np.array([[row.sampling.guidance] for row in rows] + [[1.0]] * spare, np.float32),
            excluded=excluded_ids(rows, spare, vocab_size),
            allowed=allowed_ids(rows, spare, vocab_size),
        )
        if not kind.drafted:
            return state
        if not isinstance(self._drafter, DraftModel):
            assert self._drafter is not None
            known = [row.ids for row in rows] + [np.zeros(1, np.int32)] * spare
            return Speculation(
                state, self._drafter.history(known, self.memory.all_widths(max((row.longest for row in rows), default=slots))[-1])
            )
        return Speculation(
            state,
            DraftMemory(
                self._draft_view(rows, size, slots),
                column([int(row.ids[-2]) if row.length > 1 else 0 for row in rows]),
                column([int(bool(row.written)) for row in rows]),  # fed once more, a token changes nothing
            ),
        )

    def _again(self, before: Flight, size: int, slots: int) -> State | Speculation:
        """The state after a dispatch, with tables as they are now."""
        if not isinstance(before.state, Speculation):
            return replace(before.state, cache=self._view(before.kind, before.rows, size, slots))
        state, memory = before.state.state, before.state.memory
        if isinstance(memory, DraftMemory):
            memory = replace(memory, cache=self._draft_view(before.rows, size, slots))
        return Speculation(replace(state, cache=self._view(before.kind, before.rows, size, slots)), memory)

    def _view(self, kind: Kind, rows: Sequence[Row], size: int, slots: int) -> Cache:
        spare = size - len(rows)
        readings = [*(row.reading for row in rows), *[None] * spare]
        numbers = [*(row.number for row in rows), *[self.memory.rows] * spare]
        if kind.guided:
            readings += [*(row.unconditional for row in rows), *[None] * spare]
            numbers += numbers
        return self.memory.view(readings, slots, numbers)

    def _draft_view(self, rows: Sequence[Row], size: int, slots: int) -> Cache:
        assert self.draft is not None
        spare = size - len(rows)
        return self.draft.view(
            [*(row.draft for row in rows), *[None] * spare], slots, [*(row.number for row in rows), *[self.draft.rows] * spare]
        )


def wants_top(row: Row) -> bool:
    return row.job.request.top_logprobs > 0


def row_bucket(rows: int) -> int:
    """How many rows a dispatch of so many has: 1, 4, 16, 64, ..."""
    size = 1
    while size < rows:
        size *= 4
    return size


@dataclass(frozen=True)
class Words:
    """What one row wrote in a dispatch."""

    ids: list[int]
    logprobs: list[float]
    origins: list[int] | None
    top: list[Top]


def landed(flight: Flight) -> Iterator[tuple[Row, Words]]:
    """Wait for a dispatch; rows follow it."""
    written = flight.written
    ids, logprobs, drawing, position = (np.asarray(x).tolist() for x in (written.ids, written.logprobs, written.drawing, written.position))
    origins = None if written.origins is None else np.asarray(written.origins).tolist()
    some = any(map(wants_top, flight.rows))
    top = [np.asarray(x).tolist() for x in (written.top_ids, written.top_logprobs)] if some else None
    half = len(ids)
    for i, row in enumerate(flight.rows):
        number = ids[i].index(-1) if -1 in ids[i] else len(ids[i])
        row.drawing = drawing[i]
        if flight.kind.guided:
            row.unconditional_position = position[half + i]
        wanted = row.job.request.top_logprobs
        alternatives = (
            [tuple(zip(a[:wanted], b[:wanted], strict=True)) for a, b in zip(*(x[i][:number] for x in top), strict=True)] if top else []
        )
        yield row, Words(ids[i][:number], logprobs[i][:number], origins and origins[i][:number], alternatives)
