"""What the engine takes and gives: a request goes in, a job comes back, and pieces of its answers arrive while they are written.

A job is shared by two threads. The engine's adds pieces and ends it; the other takes them, waits or cancels.
"""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pollux.content import Part
from pollux.generate.answer import Result
from pollux.generate.pages import media_content
from pollux.generate.sampler import Sampling
from pollux.tokens.sequence import Sequence

Top = tuple[tuple[int, float], ...]  # alternatives to a token, (id, log-probability), the most probable first


class Overloaded(RuntimeError):
    """The queue is full; the request may be sent again later."""


class DeadlineExceeded(RuntimeError):
    """The request was not answered in the time it was given."""


class Cancelled(RuntimeError):
    """The one who asked has left, or the engine was closed."""


class Constraint(Protocol):
    """Which ids an answer may go on with. One object serves one answer, so it may keep its place in a grammar."""

    def fresh(self) -> Constraint:
        """The same constraint at its start."""

    def allowed(self) -> np.ndarray:
        """bool [V], the ids that may come next; stops only where the answer may end."""

    def accept(self, token: int) -> None:
        """Step over an id that was allowed."""


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt and how to continue it."""

    prompt: Sequence
    sampling: Sampling
    candidates: int = 1  # answers from one prompt, with the seeds seed, seed + 1, ...
    constraint: Constraint | None = None
    top_logprobs: int = 0  # how many alternatives to report for each token
    owner: str = ""  # owners take turns in the queue
    priority: int = 0  # lower goes first, before all turns
    deadline: float | None = None  # time.monotonic()
    excluded: tuple[int, ...] = ()  # at most 4 ids that are not written, such as <draw> where only text is wanted


@dataclass(frozen=True, eq=False)
class Piece:
    """What one answer grew by. Text comes as soon as no further byte or stop string can change it, pictures and calls when whole."""

    candidate: int
    parts: tuple[Part, ...]
    ids: tuple[int, ...]  # tokens since the piece before; those of the text may come in a later piece
    logprobs: tuple[float, ...]
    top: tuple[Top, ...]  # of each token; () if not asked for
    finish_reason: str = ""  # "stop" or "length" in the last piece of a candidate
    result: Result | None = None  # in the last piece of a candidate


class Job:
    """A request on its way. `notify` is called on the engine's thread after pieces came or the job ended; it must return at once."""

    def __init__(self, request: Request, notify: Callable[[Job], None] | None = None):
        self.request, self._notify = request, notify
        self.error: Exception | None = None
        self.cancelled = False
        self.output_tokens = 0  # in the pieces so far
        self._pieces: collections.deque[Piece] = collections.deque()
        self._results: list[Result | None] = [None] * request.candidates
        self._ended = threading.Event()

    @property
    def done(self) -> bool:
        """No more pieces will come; those that did may still wait to be taken."""
        return self._ended.is_set()

    @property
    def has_pieces(self) -> bool:
        """Whether `take` has something to give."""
        return bool(self._pieces)

    @property
    def is_answered(self) -> bool:
        """Whether all candidates have a result."""
        return all(result is not None for result in self._results)

    def take(self) -> list[Piece]:
        """The pieces that came since the last call."""
        return [self._pieces.popleft() for _ in range(len(self._pieces))]

    def cancel(self) -> None:
        """Stop working on it; the engine frees what it holds before its next step."""
        self.cancelled = True

    def results(self, timeout: float | None = None) -> list[Result]:
        """Wait for the end. Raises what went wrong, TimeoutError after `timeout` seconds."""
        if not self._ended.wait(timeout):
            raise TimeoutError("the answer is not complete yet")
        if self.error is not None:
            raise self.error
        return [result for result in self._results if result is not None]

    # What follows is for the engine's thread.

    @functools.cached_property
    def content(self) -> np.ndarray:
        """`media_content` of the prompt, which takes a while for a long clip."""
        return media_content(self.request.prompt)

    def add(self, piece: Piece) -> None:
        self.output_tokens += len(piece.ids)
        if piece.result is not None:
            self._results[piece.candidate] = piece.result
        self._pieces.append(piece)

    def end(self, error: Exception | None = None) -> None:
        self.error = error
        self._ended.set()

    def tell(self) -> None:
        if self._notify is not None:
            self._notify(self)
