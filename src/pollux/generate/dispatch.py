"""Dispatches: rows of a kind become a state on the device, write a few tokens there, and what they wrote comes back.

Rows of a kind share a compiled program. A dispatch that goes on with rows of the one before takes their state where it is, so that it can
start before the host has seen what that one wrote; rows that come meanwhile join it in the places of those that ended.
Shapes: B rows, R = B or 2 B rows of the cache (guidance), V vocabulary.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
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
    read: int = 0  # tokens of prompts that the device reads before it


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

    def launch(self, kind: Kind, rows: Sequence[Row], before: Flight | None, steps: int, read: int) -> Flight:
        """Let rows that have pages for it write up to `steps` tokens. Those of `before`, if that is given, go on from there, and the others
        join them. read: see Flight."""
        slots = max(min(row.length + 2 * self.ahead, row.longest) for row in rows)
        if before is None:
            return self._launch(kind, rows, row_bucket(len(rows)), slots, None, steps, read)
        return self._launch(kind, _placed(rows, before.rows), row_bucket(len(before.rows)), slots, before, steps, read)

    def programs(self, rows: int, longest: int) -> list[Callable[[], None]]:
        """What compiles the programs for up to so many plain rows of up to so many tokens, the likely ones first."""
        sizes = sorted({row_bucket(number) for number in range(1, rows + 1)})
        made: list[Callable[[], None]] = []
        for slots in self.memory.all_widths(longest):
            made += [functools.partial(self.memory.warm, shape, slots) for shape in self.memory.shapes()]
            made += [functools.partial(self.warm, size, slots) for size in sizes]
        return [*made, self.memory.warm_spill]

    def warm(self, size: int, slots: int) -> None:
        """Compile the programs of so many plain rows with so many tokens: for those that begin, go on or join."""
        kind = Kind(False, False, self.drafts, False)
        flight = self._launch(kind, [], size, slots, None, 0)
        if isinstance(flight.state, State):
            joined = _joined(replace(flight.state, cache=None), self._columns(kind, [], size), _sources([], [], size))
            flight = replace(flight, state=replace(joined, cache=flight.state.cache))
        self._launch(kind, [], size, slots, flight, 0).written.ids.block_until_ready()

    def _launch(self, kind: Kind, rows: Sequence[Row], size: int, slots: int, before: Flight | None, steps: int, read: int = 0) -> Flight:
        state = self._fresh(kind, rows, size, slots) if before is None else self._again(before, rows, size, slots)
        ended = np.ones(size, bool)
        ended[: len(rows)] = [bool(row.answer.finish_reason) or row.lost for row in rows]
        params, config, launched_at = self.memory.params, self.memory.config, time.perf_counter()
        if isinstance(state, State):
            after, written = decode(params, config, self._grammar, state, ended, np.int32(steps), np.bool_(any(map(wants_top, rows))))
            self.memory.cache = after.cache.pages
            return Flight(kind, tuple(rows), after, written, launched_at, read)
        assert self._drafter is not None
        drafted, written = speculate(params, config, self._drafter, self._grammar, state, ended, np.int32(steps))
        self.memory.cache = drafted.state.cache.pages
        if self.draft is not None:
            self.draft.cache = drafted.memory.cache.pages
        return Flight(kind, tuple(rows), drafted, written, launched_at, read)

    def _columns(self, kind: Kind, rows: Sequence[Row], size: int) -> State:
        """The state of rows as the host knows them, all but the cache."""
        spare, vocab_size = size - len(rows), self.memory.config.vocab_size
        position = _column([row.length - 1 for row in rows], size)
        if kind.guided:
            position = np.concatenate([position, _column([row.unconditional_position for row in rows], size)])
        return State(
            cache=None,
            sampler=samplers(rows, spare, self._vocabulary, vocab_size),
            token=_column([row.pending for row in rows], size),
            position=position,
            drawing=_column([row.drawing for row in rows], size),
            thinking=_column([row.thinking for row in rows], size),
            left=_column([row.longest - row.length for row in rows], size),
            guidance=np.array([[row.sampling.guidance] for row in rows] + [[1.0]] * spare, np.float32),
            excluded=excluded_ids(rows, spare, vocab_size),
            allowed=allowed_ids(rows, spare, vocab_size),
        )

    def _fresh(self, kind: Kind, rows: Sequence[Row], size: int, slots: int) -> State | Speculation:
        state = replace(self._columns(kind, rows, size), cache=self._view(kind, rows, size, slots))
        if not kind.drafted:
            return state
        if not isinstance(self._drafter, DraftModel):
            assert self._drafter is not None
            known = [row.ids for row in rows] + [np.zeros(1, np.int32)] * (size - len(rows))
            return Speculation(
                state, self._drafter.history(known, self.memory.all_widths(max((row.longest for row in rows), default=slots))[-1])
            )
        return Speculation(
            state,
            DraftMemory(
                self._draft_view(rows, size, slots),
                _column([int(row.ids[-2]) if row.length > 1 else 0 for row in rows], size),
                _column([int(bool(row.written)) for row in rows], size),  # fed once more, a token changes nothing
            ),
        )

    def _again(self, before: Flight, rows: Sequence[Row], size: int, slots: int) -> State | Speculation:
        """The state after a dispatch, with tables as they are now, and with the rows that were not in it."""
        kind, view = before.kind, self._view(before.kind, rows, size, slots)
        if isinstance(before.state, Speculation):
            state, memory = before.state.state, before.state.memory
            if isinstance(memory, DraftMemory):
                memory = replace(memory, cache=self._draft_view(rows, size, slots))
            return Speculation(replace(state, cache=view), memory)
        state, source = before.state, _sources(rows, before.rows, size)
        if (source >= 0).any():
            new = [row for row, number in zip(rows, source, strict=False) if number >= 0]
            state = _joined(replace(state, cache=None), self._columns(kind, new, size), source)
        return replace(state, cache=view)

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


def _column(values: list[int], size: int) -> np.ndarray:
    return np.array(values + [0] * (size - len(values)), np.int32)


def _placed(rows: Sequence[Row], before: Sequence[Row]) -> list[Row]:
    """Rows of the dispatch after `before`: those that go on keep their places, and the others take those of rows that do not."""
    staying, known = set(rows), set(before)
    new = iter([row for row in rows if row not in known])
    return [*(row if row in staying else next(new, row) for row in before), *new]


def _sources(rows: Sequence[Row], before: Sequence[Row], size: int) -> np.ndarray:
    """int32 [size]: for each place -1 if its row was there before, else how many new rows come before it; -1 where there is none."""
    source = np.full(size, -1, np.int32)
    changed = [i for i, row in enumerate(rows) if i >= len(before) or row is not before[i]]
    source[changed] = np.arange(len(changed))
    return source


@functools.partial(jax.jit, donate_argnames=("state",))
def _joined(state: State, new: State, source: jax.Array) -> State:
    """Columns [B, ...] or, of guided rows, [2 B, ...] of a state on the device, with rows of `new` in the places that `source` [B] gives
    them."""
    size = len(source)

    def join(old: jax.Array, new: jax.Array) -> jax.Array:
        parts = len(old) // size
        index = jnp.concatenate([jnp.where(source >= 0, source + part * size, -1) for part in range(parts)])
        taken = index.reshape(-1, *[1] * (old.ndim - 1))
        return jnp.where(taken >= 0, jnp.asarray(new)[jnp.maximum(index, 0)], old)

    return jax.tree.map(join, state, new)


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
    ids, logprobs, drawing, thinking, position = (
        np.asarray(x).tolist() for x in (written.ids, written.logprobs, written.drawing, written.thinking, written.position)
    )
    origins = None if written.origins is None else np.asarray(written.origins).tolist()
    some = any(map(wants_top, flight.rows))
    top = [np.asarray(x).tolist() for x in (written.top_ids, written.top_logprobs)] if some else None
    half = len(ids)
    for i, row in enumerate(flight.rows):
        number = ids[i].index(-1) if -1 in ids[i] else len(ids[i])
        row.drawing, row.thinking = drawing[i], thinking[i]
        if flight.kind.guided:
            row.unconditional_position = position[half + i]
        wanted = row.job.request.top_logprobs
        alternatives = (
            [tuple(zip(a[:wanted], b[:wanted], strict=True)) for a, b in zip(*(x[i][:number] for x in top), strict=True)] if top else []
        )
        yield row, Words(ids[i][:number], logprobs[i][:number], origins and origins[i][:number], alternatives)
