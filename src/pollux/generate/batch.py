"""The rows that share the model: who has pages, who reads, who writes, and who has to give way.

One thread owns a batch and calls `step`; the queue, `commands` and `hold` may be used by others. While the device works on a dispatch, the
host looks at what the one before it wrote.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Sequence
from operator import attrgetter

import numpy as np

from pollux.generate.dispatch import Dispatcher, Flight, Kind, Words, landed, row_bucket
from pollux.generate.memory import PAGE, Memory
from pollux.generate.pace import Pace
from pollux.generate.pages import NoPages, closed_pages
from pollux.generate.prompts import bucket, unconditional_prompt
from pollux.generate.requests import Cancelled, DeadlineExceeded, Job, Overloaded, Piece, Request
from pollux.generate.rows import Holding, Reading, Row, drawn, longer
from pollux.generate.schedule import Queue, is_hopeless
from pollux.generate.settings import EngineSettings
from pollux.tokens import sequence as tokens
from pollux.tokens.interleave import PictureCodec
from pollux.tokens.vocabulary import Vocabulary

GROWN_TOKENS = 2**17  # a cache that grows as needed stops growing here
FIRST_TOKENS = 256  # of each row that it has room for at first, unless its answer cannot become so long


class Batch:
    """dispatcher(slots, chunk) makes memory for that many tokens, which are read in such chunks."""

    def __init__(
        self,
        settings: EngineSettings,
        vocabulary: Vocabulary,
        codec: PictureCodec | None,
        dispatcher: Callable[[int, int], Dispatcher],
    ):
        self._settings, self._vocabulary, self._codec = settings, vocabulary, codec
        self._make_dispatcher = dispatcher
        self.dispatcher = dispatcher(settings.cache_tokens or 0, settings.chunk)
        self.queue = Queue(settings.max_queue)
        self.commands: collections.deque[Callable[[], None]] = collections.deque()
        self.rows: list[Row] = []  # with pages, in the order in which they got them
        self.prompt_tokens = self.cached_tokens = self.output_tokens = 0
        self._without_pages: collections.deque[Row] = collections.deque()  # those that had to give way, and further candidates
        self._holdings: list[Holding] = []
        self._numbers = list(range(settings.max_rows))
        self._flights: dict[Kind, Flight] = {}
        self._pace = Pace(settings.dispatch_seconds, settings.chunk)
        self._read_since = 0  # tokens that were read since the last one
        self._chunks = 0  # that were read so far
        self._landed_at = 0.0

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self.queue) + len(self._without_pages)

    @property
    def _room(self) -> int:
        """Tokens of one row that always fit into the cache."""
        return (self._settings.cache_tokens or GROWN_TOKENS) - 2 * self.dispatcher.ahead - PAGE

    @property
    def busy(self) -> bool:
        return bool(self.commands or self.waiting or self.rows or self._flights or self._holdings)

    def check(self, request: Request) -> None:
        """Raises ValueError for a request that can never be served."""
        prompt, answer = len(request.prompt), request.sampling.max_output_tokens
        longest = self._settings.longest or self._room
        if prompt + answer > longest:
            raise ValueError(f"a prompt of {prompt} tokens and an answer of up to {answer} are more than the {longest} there is room for")
        if len(request.excluded) > 4:
            raise ValueError(f"{len(request.excluded)} ids are excluded, but at most 4 can be")
        if request.sampling.guidance != 1:
            unconditional_prompt(self._vocabulary)

    def reserve(self, requests: Sequence[Request]) -> None:
        """Have room for the first tokens of requests that will come together."""
        if self._settings.cache_tokens is None:
            ends = sorted(len(r.prompt) + min(r.sampling.max_output_tokens, FIRST_TOKENS) + self.dispatcher.ahead for r in requests)
            self._grow(sum(-(-end // PAGE) * PAGE for end in ends[-self._settings.max_rows :]))

    def hold(self, prompt: tokens.Sequence) -> Holding:
        """Have the whole pages of a prompt read and kept, up to the last that does not end inside a medium."""
        holding = Holding(Reading(prompt, PAGE * closed_pages(prompt.group, PAGE), PAGE))
        self.commands.append(lambda: self._holdings.append(holding))
        return holding

    def step(self, patient: bool = False) -> None:
        """Admit, prefill, and launch a dispatch of every kind of rows. patient: nobody watches the tokens come, so all is read first."""
        while True:
            while self.commands:
                self.commands.popleft()()
            self._drop_hopeless()
            self._admit()
            tokens = self._prefill()
            self._read_since += tokens
            # Rows that write wait for a share of the reading; those that nobody watches wait until all is read.
            if not tokens or (not patient and self._read_since >= self._pace.share and self._ready()):
                break
        self._decode()

    def cancel_all(self) -> None:
        for job in {row.job for row in (*self.rows, *self._without_pages)} | set(self.queue.jobs()):
            job.cancel()

    def fail(self, error: Exception) -> None:
        """After a step has failed: end all that was under way, and begin anew with an empty cache."""
        rows = [*self.rows, *self._without_pages]
        self.rows, self._flights = [], {}
        self._without_pages.clear()
        self._numbers = list(range(self._settings.max_rows))
        self.dispatcher = self._make_dispatcher(self._settings.cache_tokens or 0, self._settings.chunk)
        for holding in list(self._holdings):
            self._end(holding, error)
        for job in {row.job for row in rows}:
            job.end(error)
            job.tell()

    def programs(self) -> list[Callable[[], None]]:
        """What compiles the programs that requests need most."""
        return self.dispatcher.programs(self._settings.max_rows, self._settings.longest or self._room)

    # Rows come and go.

    def _drop_hopeless(self) -> None:
        now = time.monotonic()
        lost = {row.job for row in (*self.rows, *self._without_pages) if is_hopeless(row.job, now)}
        for row in [row for row in (*self.rows, *self._without_pages) if row.job in lost]:
            row.lost = True
            self._take_pages(row)
        self.rows = [row for row in self.rows if not row.lost]
        self._without_pages = collections.deque(row for row in self._without_pages if not row.lost)
        for job in [*lost, *self.queue.take_hopeless()]:
            if not job.done:
                job.end(
                    Cancelled("the request was cancelled") if job.cancelled else DeadlineExceeded("the request took longer than it may")
                )
                job.tell()

    def _admit(self) -> None:
        for holding in list(self._holdings):
            if holding.reading.lease is None:
                if not self._has_chunk_for(holding.reading.sequence):
                    return
                self.dispatcher.memory.lease(holding.reading)
                assert holding.reading.lease is not None
                try:
                    self._cover(self.dispatcher.memory, holding.reading, holding.reading.wanted)
                except NoPages:
                    holding.reading.lease.release()
                    self._end(holding, Overloaded("the cache has no room for this context now; try again later"))
        while len(self.rows) < self._settings.max_rows:
            row = self._next_row()
            if row is None:
                return
            if not self._give_pages(row):
                if not self.rows and not self._holdings:
                    self._refuse(row)
                return
            self._without_pages.remove(row)
            self.rows.append(row)

    def _next_row(self) -> Row | None:
        """The row whose turn it is: of the most urgent ones that had to give way, a further candidate, or the first of the queue."""
        row = min((row for row in self._without_pages if row.may_begin), key=attrgetter("priority"), default=None)
        job = self.queue.first()
        if job is None or (row is not None and row.priority <= job.request.priority):
            return row
        rows = [Row.of(job, candidate, self._vocabulary, self._codec) for candidate in range(job.request.candidates)]
        for row in rows[1:]:
            row.leader = rows[0]
        self.queue.take(job)
        self._without_pages.extend(rows)
        return rows[0]

    def _give_pages(self, row: Row) -> bool:
        """Have room for the row's tokens so far and those of a dispatch; False if there is none at the moment."""
        sequence = row.so_far()
        if not self._has_chunk_for(sequence):
            return False
        memory, draft = self.dispatcher.memory, self.dispatcher.draft
        row.reading = Reading(sequence, len(sequence) - 1, PAGE, known=row.job.content)
        wanted = [(memory, row.reading)]
        if row.sampling.guidance != 1:
            alone = longer(unconditional_prompt(self._vocabulary), drawn(row.written[:-1], self._vocabulary))
            row.unconditional = Reading(alone, len(alone), PAGE)
            row.unconditional_position = len(alone)
            wanted.append((memory, row.unconditional))
        elif self.dispatcher.drafts and row.constraint is None and not row.job.request.top_logprobs:
            row.is_drafted = True
            if draft is not None:
                row.draft = Reading(sequence, len(sequence) - 1, PAGE, known=row.job.content)
                wanted.append((draft, row.draft))
        row.number = self._numbers.pop()
        try:
            for owner, reading in wanted:
                owner.lease(reading)
                self._cover(owner, reading, reading.wanted + self.dispatcher.ahead)
        except NoPages:
            self._take_pages(row)
            return False
        for owner, _ in wanted:
            owner.forget_soft(row.number)
        if not row.written:
            row.answer.cached = row.reading.filled
            self.prompt_tokens += len(row.prompt)
            self.cached_tokens += row.reading.filled
        return True

    def _take_pages(self, row: Row) -> None:
        """Give back what a row has of the cache."""
        if row.reading is not None:
            self._numbers.append(row.number)
        for reading in (row.reading, row.unconditional, row.draft):
            if reading is not None and reading.lease is not None:
                reading.lease.release()
        row.reading = row.unconditional = row.draft = None

    def _cover(self, memory: Memory, reading: Reading, end: int) -> None:
        """Have pages for the tokens before `end`. Raises NoPages if the cache is full and must not grow."""
        assert reading.lease is not None
        while True:
            try:
                return reading.lease.cover(end)
            except NoPages:
                if self._settings.cache_tokens is not None or memory.slots >= GROWN_TOKENS:
                    raise
                self._grow(max(2 * memory.slots, end))

    def _grow(self, slots: int) -> None:
        slots = min(bucket(slots), GROWN_TOKENS)
        for memory in (self.dispatcher.memory, self.dispatcher.draft):
            if memory is not None and memory.slots < slots:
                memory.grow(slots)

    def _has_chunk_for(self, sequence: tokens.Sequence) -> bool:
        """Whether the largest medium of a prompt can be read at once; if not, the memory is made anew when no row uses it."""
        groups = np.bincount(sequence.group)[1:]
        chunk = bucket(int(groups.max(initial=0)))
        if chunk <= self.dispatcher.memory.chunk:
            return True
        if self.rows or any(holding.reading.lease for holding in self._holdings):
            return False
        self._land_all()
        self.dispatcher = self._make_dispatcher(self.dispatcher.memory.slots, chunk)
        return True

    # Reading and writing.

    def _prefill(self) -> int:
        """Have a chunk of prompts read, behind what the device does now; returns its tokens, 0 if there is none."""
        self._chunks += 1
        main = [(reading, row.number) for row in self.rows for reading in (row.reading, row.unconditional) if reading]
        main += [(holding.reading, self.dispatcher.memory.rows) for holding in self._holdings if holding.reading.lease]
        did = self._read(self.dispatcher.memory, main)
        if self.dispatcher.draft is not None:
            did += self._read(self.dispatcher.draft, [(row.draft, row.number) for row in self.rows if row.draft])
        for holding in [holding for holding in self._holdings if holding.reading.lease and not holding.reading.unfinished]:
            self.dispatcher.memory.keep(holding.reading)
            self.dispatcher.memory.wait()
            self._end(holding)
        return did

    def _end(self, holding: Holding, error: Exception | None = None) -> None:
        self._holdings.remove(holding)
        holding.error = error
        holding.ended.set()

    def _read(self, memory: Memory, readings: list[tuple[Reading, int]]) -> int:
        unfinished = [(reading, number) for reading, number in readings if reading.unfinished]
        if self._chunks % 2 == 0:  # in turn with the prompt that came first, so that a short one need not wait for a long one
            unfinished.sort(key=lambda one: one[0].unfinished)
        return memory.read([reading for reading, _ in unfinished], [number for _, number in unfinished]) if unfinished else 0

    def _ready(self) -> list[Row]:
        return [row for row in self.rows if not any(r and r.unfinished for r in (row.reading, row.unconditional, row.draft))]

    def _decode(self) -> None:
        by_kind: dict[Kind, list[Row]] = {kind: [] for kind in self._flights}
        for row in self._ready():
            by_kind.setdefault(Kind.of(row), []).append(row)
        read, self._read_since = self._read_since, 0
        for kind, rows in by_kind.items():
            before = self._flights.get(kind)
            if before is not None:
                if self._goes_on(rows, before):
                    self._flights[kind] = self.dispatcher.launch(kind, rows, before, self._pace.steps(kind, len(rows)), read)
                    self._land(before)
                    continue
                self._land(self._flights.pop(kind))
            rows = self._with_pages(rows)
            if rows:
                self._flights[kind] = self.dispatcher.launch(kind, rows, None, self._pace.steps(kind, len(rows)), read)

    def _goes_on(self, rows: list[Row], before: Flight) -> bool:
        """Whether rows can write on, or begin, before it is known what the dispatch wrote that is under way."""
        if not rows or before.kind.constrained or row_bucket(len(rows)) != row_bucket(len(before.rows)):
            return False
        if before.kind.drafted and not set(rows) <= set(before.rows):
            return False
        try:
            for row in rows:
                self._cover_row(row)
        except NoPages:
            return False
        return True

    def _with_pages(self, rows: list[Row]) -> list[Row]:
        """Those of the rows that can write on; if there are too few pages for all, the last to come give way to the others."""
        for row in rows:
            while row.reading is not None and not row.answer.finish_reason:
                try:
                    self._cover_row(row)
                    break
                except NoPages:
                    self._land_all()
                    self._give_way()
        return [row for row in rows if row.reading is not None and not row.answer.finish_reason]

    def _cover_row(self, row: Row) -> None:
        """Have pages for what two dispatches may add. Raises NoPages."""
        end = row.length + 2 * self.dispatcher.ahead
        memory, draft = self.dispatcher.memory, self.dispatcher.draft
        assert row.reading is not None
        self._cover(memory, row.reading, min(end, row.longest + self.dispatcher.ahead))
        if row.unconditional is not None:
            self._cover(memory, row.unconditional, row.unconditional_position + 2 * self.dispatcher.ahead)
        if draft is not None and row.draft is not None:
            self._cover(draft, row.draft, min(end, row.longest + self.dispatcher.ahead))

    def _give_way(self) -> None:
        """The row that came last, of the least urgent ones, waits for pages."""
        row = max(reversed(self.rows), key=attrgetter("priority"))
        self.rows.remove(row)
        self._take_pages(row)
        if self.rows:
            row.leader = None
            self._without_pages.appendleft(row)
            return
        self._refuse(row)

    def _refuse(self, row: Row) -> None:
        """What contexts hold leaves no room for a row, even if it is alone."""
        row.lost = True
        row.job.end(Overloaded("the cache has no room for this answer now; try again later"))
        row.job.tell()

    def _land(self, flight: Flight) -> None:
        """Take what a dispatch wrote to its rows and their jobs."""
        jobs, most = dict[Job, None](), 0
        for row, words in landed(flight):
            if row.lost or row.job.done or row.answer.finish_reason:
                continue
            most = max(most, len(words.ids))
            jobs[row.job] = None
            try:
                self._take(row, words)
            except Exception as error:  # a constraint or a codec that fails ends its own answer alone
                row.lost = True
                row.job.end(error)
            if row.answer.finish_reason or row.lost:
                self._take_pages(row)
                self.rows.remove(row)
        now = time.perf_counter()
        self._pace.follow(flight, most, now - max(flight.launched_at, self._landed_at))
        self._landed_at = now
        for job in jobs:
            job.tell()

    def _land_all(self) -> None:
        for kind in list(self._flights):
            self._land(self._flights.pop(kind))

    def _take(self, row: Row, words: Words) -> None:
        taken = row.answer.extend(words.ids, words.logprobs, words.origins or ())
        ids = words.ids[:taken]
        if row.constraint is not None:
            for i in ids:
                row.constraint.accept(i)
        row.wrote(ids)
        self.output_tokens += taken
        reason = row.answer.finish_reason
        result = row.answer.result() if reason else None
        parts = row.answer.fresh()
        row.job.add(Piece(row.candidate, parts, tuple(ids), tuple(words.logprobs[:taken]), tuple(words.top[:taken]), reason, result))
        if reason and row.job.is_answered:
            row.job.end()
