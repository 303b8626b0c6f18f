"""An engine that counts: it hands every job on to another and notes when its pieces come and how many tokens it took.

All answers are written through `submit`, so what is counted here is counted for every route.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pollux.generate.requests import Cancelled, DeadlineExceeded, Job, Request
from pollux.serve.limits import Limits
from pollux.serve.metrics import Metrics
from pollux.serve.server import AnyEngine
from pollux.tokens.interleave import count
from pollux.tokens.sequence import Sequence


@dataclass(eq=False)
class Tally:
    """Who sent an HTTP request or opened a session, and what its jobs took; the line in the log shows it."""

    client: str = ""  # whose allowance they take from, as access.py admitted it
    prompt_tokens: int = 0
    output_tokens: int = 0
    first_token_seconds: float | None = None


current_tally: contextvars.ContextVar[Tally | None] = contextvars.ContextVar("current_tally", default=None)


class MeasuredEngine:
    """The engine of a model, for class Served. What it does not know itself it asks the engine inside."""

    def __init__(self, engine: AnyEngine, model: str, metrics: Metrics, limits: Limits):
        self.engine, self.model, self.metrics, self.limits = engine, model, metrics, limits

    def submit(self, request: Request, notify: Callable[[Job], None] | None = None) -> Job:
        """Raises what the engine raises, and LimitExceeded within a session that has used up its client's tokens."""
        watch = _Watch(self, request, notify)
        job = self.engine.submit(request, watch)
        watch.charge(_count_prompt(self, request.prompt), read=True)
        return job

    def hold(self, prompt: Any) -> Any:
        context = self.engine.hold(prompt)
        _count_prompt(self, prompt)
        return context

    def stats(self) -> Any:
        return self.engine.stats()


class _Watch:
    """Stands between a job and who waits for it; called on the engine's thread."""

    def __init__(self, measured: MeasuredEngine, request: Request, notify: Callable[[Job], None] | None):
        self.measured, self.notify, self.tally = measured, notify, current_tally.get()
        self.client = self.tally.client if self.tally is not None and self.tally.client else request.owner
        if self.tally is not None:
            measured.limits.check_tokens(self.client)
        self.start, self.latest, self.written, self.ended = time.monotonic(), 0.0, 0, False

    def __call__(self, job: Job) -> None:
        now, fresh = time.monotonic(), job.output_tokens - self.written
        if fresh:
            metrics, model = self.measured.metrics, self.measured.model
            if self.written:
                metrics.token_seconds.labels(model).observe((now - self.latest) / fresh)
            else:
                metrics.first_token_seconds.labels(model).observe(now - self.start)
                if self.tally is not None and self.tally.first_token_seconds is None:
                    self.tally.first_token_seconds = now - self.start
            self.charge(fresh, read=False)
            self.latest, self.written = now, job.output_tokens
        if job.done and not self.ended:
            self.ended = True
            self._count_end(job)
        if self.notify is not None:
            self.notify(job)

    def charge(self, tokens: int, read: bool) -> None:
        self.measured.limits.charge(self.client, tokens)
        if self.tally is not None:
            if read:
                self.tally.prompt_tokens += tokens
            else:
                self.tally.output_tokens += tokens

    def _count_end(self, job: Job) -> None:
        metrics, model = self.measured.metrics, self.measured.model
        metrics.jobs.labels(model, _END.get(type(job.error), "error")).inc()
        if job.error is not None:
            metrics.tokens.labels(model, "out", "text").inc(job.output_tokens)  # of a job that broke off, nobody sorts them
            return
        for result in job.results():
            for modality, number in result.usage.output.items():
                metrics.tokens.labels(model, "out", modality).inc(number)


def _count_prompt(measured: MeasuredEngine, prompt: Sequence) -> int:
    """Count what is read, by modality; returns all tokens."""
    tokens = count(prompt)
    for modality, number in tokens.items():
        measured.metrics.tokens.labels(measured.model, "in", modality).inc(number)
    return sum(tokens.values())


_END = {type(None): "answered", Cancelled: "cancelled", DeadlineExceeded: "too late"}
