"""Requests in, answers out: continuous batching over a paged cache.

A step admits what waits, prefills a chunk, and lets every row that has read its prompt write a few tokens (batch.py). Rows come and go
between steps, and a row's answer does not depend on its company. `start` runs the steps on a thread of their own; until then `generate`,
`stream` and `hold` run them in the caller's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pollux.generate.answer import Result
from pollux.generate.batch import Batch
from pollux.generate.dispatch import Dispatcher
from pollux.generate.drafter import Drafter, DraftModel
from pollux.generate.grammar import grammar
from pollux.generate.memory import Memory, Spilled
from pollux.generate.requests import Cancelled, Job, Piece, Request
from pollux.generate.rows import Reading
from pollux.generate.sampler import Sampling
from pollux.generate.settings import EngineSettings
from pollux.generate.shelf import identity
from pollux.generate.spill import Spill
from pollux.model.config import ModelConfig
from pollux.model.params import Params
from pollux.tokens import sequence as tokens
from pollux.tokens.interleave import PictureCodec
from pollux.tokens.vocabulary import Vocabulary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stats:
    """What the engine does at a moment, and what it has done since it was made."""

    waiting: int  # requests
    rows: int  # answers that are being written
    pages: int  # of the KV cache
    pages_used: int
    pages_kept: int  # that nobody uses but that hold a prefix
    prompt_tokens: int
    cached_tokens: int  # of those, how many were still in the cache
    output_tokens: int


class Context:
    """The pages of a prompt, kept until `release`."""

    def __init__(self, engine: Engine, reading: Reading):
        self._engine, self._reading = engine, reading

    @property
    def tokens(self) -> int:
        """Tokens that are kept, whole pages."""
        return self._reading.wanted

    def release(self) -> None:
        lease, self._reading.lease = self._reading.lease, None
        if lease is not None:
            self._engine.run_between_steps(lease.release)


class Engine:
    """Generates with one model. Prompts are sequences as `encode_prompt` makes them. A drafter makes it faster, but for guided and
    constrained answers."""

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        vocabulary: Vocabulary,
        codec: PictureCodec | None = None,
        drafter: Drafter | None = None,
        settings: EngineSettings = EngineSettings(),
    ):
        if vocabulary.size > config.vocab_size:
            raise ValueError(f"the vocabulary has {vocabulary.size} ids but model {config.name!r} only {config.vocab_size}")
        self.vocabulary, self.codec, self.settings = vocabulary, codec, settings
        num_codes = 0 if codec is None else codec.encode(np.zeros((1, *codec.size, 3), np.uint8)).shape[1]
        allowed = grammar(vocabulary, config.vocab_size, num_codes)

        self._spill = None
        if settings.spill is not None or settings.spill_memory:
            self._spill = Spill(settings.spill, settings.spill_bytes, settings.spill_memory)
        identities: dict[tuple[int, int], str] = {}

        def spilled(params: Params, config: ModelConfig) -> Spilled | None:
            if self._spill is None:
                return None
            if (own := (id(params), id(config))) not in identities:  # it takes a while, and memory is made anew now and then
                identities[own] = identity(params, config)
            return self._spill, identities[own]

        def dispatcher(slots: int, chunk: int) -> Dispatcher:
            def memory(params: Params, config: ModelConfig) -> Memory:
                return Memory(params, config, settings.max_rows, chunk, slots, settings.kv_cache_dtype, spilled(params, config))

            draft = memory(drafter.params, drafter.config) if isinstance(drafter, DraftModel) else None
            return Dispatcher(memory(params, config), allowed, vocabulary, drafter, draft)

        self._batch = Batch(settings, vocabulary, codec, dispatcher)
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False

    def generate(self, prompts: Sequence[tokens.Sequence], samplings: Sequence[Sampling]) -> list[Result]:
        """One result a prompt, in order. A result does not depend on the other prompts."""
        jobs = [Job(Request(prompt, sampling)) for prompt, sampling in zip(prompts, samplings, strict=True)]
        for job in jobs:
            self._batch.check(job.request)
        self._batch.reserve([job.request for job in jobs])
        for job in jobs:
            self._batch.queue.push(job, limited=False)
        self._run_until(lambda: all(job.done for job in jobs))
        return [job.results()[0] for job in jobs]

    def stream(self, prompt: tokens.Sequence, sampling: Sampling) -> Iterator[Piece]:
        """The answer to one prompt, piece by piece; the same tokens as `generate`."""
        job = self.submit(Request(prompt, sampling))
        try:
            while not job.done:
                self._run_until(lambda: job.done or job.has_pieces)
                yield from job.take()
            job.results()
            yield from job.take()
        finally:
            job.cancel()

    def submit(self, request: Request, notify: Callable[[Job], None] | None = None) -> Job:
        """Put a request into the queue. Raises Overloaded if that is full, ValueError for a request that can never be served."""
        self._batch.check(request)
        job = Job(request, notify)
        with self._open():
            self._batch.queue.push(job)
        return job

    def hold(self, prompt: tokens.Sequence) -> Context:
        """Read a prompt and keep what its whole pages hold, so that requests that begin with it start behind them.

        Raises Overloaded if there is no room for them.
        """
        self._batch.check(Request(prompt, Sampling(max_output_tokens=1)))
        with self._open():
            holding = self._batch.hold(prompt)
        self._run_until(holding.ended.is_set)
        if holding.error is not None:
            raise holding.error
        return Context(self, holding.reading)

    def stats(self) -> Stats:
        batch = self._batch
        pool = max(batch.dispatcher.memory.ledger.pools.values(), key=len)
        totals = batch.prompt_tokens, batch.cached_tokens, batch.output_tokens
        return Stats(batch.waiting, len(batch.rows), len(pool), len(pool) - pool.available, pool.kept, *totals)

    def warm(self, progress: Callable[[int, int], None] = lambda done, number: None) -> None:
        """Compile the programs that requests will need, before `start`. progress(done, number) is called after each."""
        programs = self._batch.programs()
        for done, program in enumerate(programs):
            progress(done, len(programs))
            program()
        progress(len(programs), len(programs))

    def start(self) -> None:
        """Run the steps on a thread of their own until `close`."""
        assert self._thread is None, "the engine runs already"
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def close(self, drain: float = 30.0) -> None:
        """Take no more requests, give those that are there `drain` seconds to end, cancel the others."""
        with self._wake:
            self._closing = True
        end = time.monotonic() + drain
        while self._thread is not None and self._batch.busy and time.monotonic() < end:
            time.sleep(0.01)
        self._batch.cancel_all()
        self._notice()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._spill is not None:
            self._spill.close()

    def run_between_steps(self, command: Callable[[], None]) -> None:
        """Have something done by the thread that owns the pages."""
        self._batch.commands.append(command)
        self._notice()

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """What is put into the batch here is seen by the loop before it ends. Raises Cancelled if the engine is closing."""
        with self._wake:
            if self._closing:
                raise Cancelled("the engine is closing")
            yield
            self._wake.notify_all()

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._batch.busy or self._closing)
                if not self._batch.busy:
                    return
            try:
                self._batch.step()
            except Exception as error:
                log.exception("a step of the engine failed")
                self._batch.fail(error)
            self._notice()

    def _run_until(self, done: Callable[[], bool]) -> None:
        if self._thread is None:
            while not done():
                self._batch.step(patient=True)
            return
        self._notice()
        with self._wake:
            self._wake.wait_for(done)

    def _notice(self) -> None:
        with self._wake:
            self._wake.notify_all()
