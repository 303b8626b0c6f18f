"""The rows that the engine works on, on the host: what has been read and written of each, and the state that a dispatch needs of them.

Shapes: B rows, V vocabulary, N soft tokens, D model, M pages of a row.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pollux.generate import thoughts
from pollux.generate.answer import Answer
from pollux.generate.pages import Lease, media_content, names, open_pages
from pollux.generate.prompts import plain
from pollux.generate.requests import Constraint, Job
from pollux.generate.sampler import SamplerState, Sampling, sampler_state
from pollux.tokens import sequence as tokens
from pollux.tokens.interleave import PictureCodec, count
from pollux.tokens.vocabulary import Vocabulary


@dataclass(eq=False)
class Reading:
    """Tokens on their way into the cache, of which the first `wanted` go there by prefill."""

    sequence: tokens.Sequence
    wanted: int
    page: int
    filled: int = 0
    lease: Lease | None = None
    soft: tuple[np.ndarray, np.ndarray] | None = None  # soft tokens [N, D] as the decoder takes them, and their ascending index [N]
    known: np.ndarray | None = None  # `media_content` up to where only plain ids follow

    def __post_init__(self):
        known = media_content(self.sequence) if self.known is None else self.known
        self.content = np.concatenate([known, np.zeros(len(self.sequence) - len(known), np.uint64)])
        self.names = names(self.sequence.ids, self.content, self.page)
        self.open_pages = open_pages(self.sequence.group, self.page)

    @property
    def unfinished(self) -> int:
        """Tokens that prefill has yet to read."""
        return self.wanted - self.filled

    def chunk(self, most: int) -> int:
        """How many tokens to read next, at most `most`: a two-way group is read at once. Raises ValueError if it does not fit."""
        number = self._next(most)
        if not number:
            raise ValueError(f"a medium of the prompt is longer than the {most} tokens that are read at once")
        return number

    def fits(self, most: int) -> bool:
        """Whether `chunk` finds something to read."""
        return self._next(most) > 0

    def _next(self, most: int) -> int:
        end = min(self.filled + most, self.wanted)
        group = self.sequence.group
        while self.filled < end < len(group) and group[end - 1] == group[end] > 0:
            end -= 1
        return end - self.filled

    def read(self, number: int) -> None:
        """`number` more tokens are in the cache; pages that became full may be found by others."""
        assert self.lease is not None
        first, self.filled = self.filled // self.page, self.filled + number
        for full in range(first, self.filled // self.page):
            self.lease.name(full, self.names[full])

    def soft_within(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The soft tokens [n, D] of positions start..end - 1, and their index counted from start."""
        assert self.soft is not None
        features, index = self.soft
        own = slice(*np.searchsorted(index, [start, end]))
        return features[own], index[own] - start


@dataclass(eq=False)
class Holding:
    """A prompt whose pages are to be kept."""

    reading: Reading
    ended: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


@dataclass(eq=False)
class Row:
    """One answer of a job."""

    job: Job
    candidate: int
    prompt: tokens.Sequence
    sampling: Sampling
    answer: Answer
    constraint: Constraint | None = None
    leader: Row | None = None  # the row that reads the same prompt first
    number: int = 0  # of this row in the memory that cross-attention reads
    reading: Reading | None = None  # None: it waits for its turn
    draft: Reading | None = None  # by the model that drafts
    unconditional: Reading | None = None  # of a guided row, what is drawn for no prompt
    unconditional_position: int = 0
    drawing: int = 0  # see grammar.py

    @classmethod
    def of(cls, job: Job, candidate: int, vocabulary: Vocabulary, codec: PictureCodec | None) -> Row:
        request = job.request
        sampling = dataclasses.replace(request.sampling, seed=(request.sampling.seed + candidate) % 2**32)
        answer = Answer(sampling, count(request.prompt), vocabulary, codec)
        return cls(job, candidate, request.prompt, sampling, answer, request.constraint and request.constraint.fresh())

    def __post_init__(self):
        self.thinking = thoughts.before(self.sampling.max_thought_tokens)
        self.written: list[int] = []
        self.is_drafted = False
        self.lost = False  # nobody waits for it any more

    @property
    def priority(self) -> int:
        return self.job.request.priority

    @property
    def may_begin(self) -> bool:
        """Whether no other row is about to read the same prompt."""
        leader = self.leader
        return leader is None or leader.answer.finish_reason != "" or leader.lost or bool(leader.reading and not leader.reading.unfinished)

    @property
    def length(self) -> int:
        """Tokens of the prompt and the answer, of which the last is not in the cache."""
        return len(self.prompt) + len(self.written)

    @property
    def longest(self) -> int:
        return len(self.prompt) + self.sampling.max_output_tokens

    @property
    def ids(self) -> np.ndarray:
        return np.concatenate([self.prompt.ids, np.array(self.written, np.int32)])

    @property
    def pending(self) -> int:
        """The token that is fed next."""
        return self.written[-1] if self.written else int(self.prompt.ids[-1])

    @property
    def is_penalized(self) -> bool:
        s = self.sampling
        return s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0

    def so_far(self) -> tokens.Sequence:
        """The prompt and what was written, as one sequence."""
        return longer(self.prompt, self.written)

    def wrote(self, ids: Sequence[int]) -> None:
        """Keep what a dispatch wrote; pages that became full may be found by others."""
        reading = self.reading
        assert reading is not None and reading.lease is not None
        first = (self.length - 1) // reading.page
        self.written.extend(ids)
        if (self.length - 1) // reading.page > first:
            all_ids = self.ids[:-1]
            content = np.concatenate([reading.content, np.zeros(len(all_ids), np.uint64)])[: len(all_ids)]
            reading.names = names(all_ids, content, reading.page, reading.names)
            for full in range(first, len(reading.names)):
                reading.lease.name(full, reading.names[full])


def drawn(ids: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """Those of the ids that a model wrote which are drawings, with their openings and closings."""
    draw, end_draw = vocabulary.specials.get("<draw>"), vocabulary.specials.get("</draw>")
    made, inside = [], False
    for i in ids:
        inside |= i == draw
        made += [i] if inside else []
        inside &= i != end_draw
    return made


def longer(sequence: tokens.Sequence, ids: Sequence[int]) -> tokens.Sequence:
    """The sequence with plain ids after it."""
    if not ids:
        return sequence
    tail = plain(ids)
    joined = {
        field.name: np.concatenate([getattr(sequence, field.name), getattr(tail, field.name)])
        for field in dataclasses.fields(sequence)
        if field.name not in ("soft", "position")
    }
    return tokens.Sequence(position=np.arange(len(sequence) + len(ids), dtype=np.int32), soft=sequence.soft, **joined)


def samplers(rows: Sequence[Row], spare: int, vocabulary: Vocabulary, vocab_size: int) -> SamplerState:
    """Settings and history of rows, and of `spare` rows that have ended."""

    def words(ids: np.ndarray) -> np.ndarray:
        return ids[ids < vocabulary.code_offset]  # penalties leave image codes alone

    settings = [row.sampling for row in rows] + [Sampling(temperature=0)] * spare
    state = sampler_state(settings, [words(row.prompt.ids) for row in rows] + [np.zeros(0, np.int32)] * spare, vocab_size)
    for number, row in enumerate(rows):
        state.drawn[number] = len(row.written)
        if state.penalized:
            np.add.at(state.counts[number], words(np.array(row.written, np.int32)), 1)
    return state


def tables(leases: Sequence[Lease | None], widths: dict[int, int]) -> dict[int, np.ndarray]:
    """int32 [B, widths[kind]] of each kind of pages; zeros where a row has none."""
    made = {kind: np.zeros((len(leases), width), np.int32) for kind, width in widths.items()}
    for kind, table in made.items():
        for own, lease in zip(table, leases, strict=True):
            if lease is not None:
                pages = lease.tables[kind][: len(own)]
                own[: len(pages)] = pages
    return made


def allowed_ids(rows: Sequence[Row], spare: int, vocab_size: int) -> np.ndarray:
    """uint32 [B, V / 32], a bit for each id that the constraints of rows leave; all of them where there is none."""
    made = np.full((len(rows) + spare, -(-vocab_size // 32)), 2**32 - 1, np.uint32)
    for own, row in zip(made, rows, strict=False):
        if row.constraint is not None:
            allowed = np.zeros(32 * len(own), bool)
            mask = row.constraint.allowed()
            allowed[: len(mask)] = mask
            own[:] = np.packbits(allowed, bitorder="little").view("<u4")
    return made


def excluded_ids(rows: Sequence[Row], spare: int, vocab_size: int) -> np.ndarray:
    """int32 [B, 4], filled up with V."""
    made = np.full((len(rows) + spare, 4), vocab_size, np.int32)
    for own, row in zip(made, rows, strict=False):
        excluded = row.job.request.excluded
        own[: len(excluded)] = excluded
    return made
