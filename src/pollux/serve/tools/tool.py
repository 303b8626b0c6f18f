"""What a tool of the server is. The operator enables an `Enabled`; for each request that asks for it, that makes a `ServerTool`.

A tool may do two things. The model calls it as it calls functions, and reads what it answered (`declarations`, `shown`, `run`); or it
looks something up before the model writes (`before`), for models that do not call. Both may find sources, about which it may say
something when the answer is complete (`after`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pollux import content
from pollux.serve.wire.content import Part


@dataclass(frozen=True)
class Source:
    """A passage that was found, which the answer may rest on."""

    uri: str
    title: str
    text: str
    details: Any = None  # what the tool itself wants to know of it in `after`


@dataclass(frozen=True)
class Found:
    """What a tool has found so far in a request, in the order in which the model read it."""

    sources: tuple[Source, ...] = ()
    queries: tuple[str, ...] = ()  # what was searched for

    def __add__(self, other: Found) -> Found:
        return Found(self.sources + other.sources, self.queries + other.queries)


@dataclass(frozen=True)
class Context:
    """What a tool found before the model wrote; the model reads the text, if there is one, before the last turn of the user."""

    text: str
    found: Found = Found()


@dataclass(frozen=True)
class Room:
    """How many tokens a Context may add to the prompt, and how many a text has."""

    tokens: int
    count: Callable[[str], int]


@dataclass(frozen=True)
class Outcome:
    """What a call came to. response, media: what the model reads; parts: what the client sees after the parts of the call."""

    response: Mapping[str, Any]
    parts: tuple[Part, ...] = ()
    media: tuple[content.Part, ...] = ()
    found: Found = Found()


@dataclass(frozen=True)
class Leave:
    """How long a call may take, in seconds; `ended` is set when nobody waits for it any more, and a tool that waits looks at that."""

    seconds: float
    ended: threading.Event = field(default_factory=threading.Event)


class ServerTool:
    """A tool in one request. Its methods block, and may be called on any thread, one at a time.

    seconds: the most that `run` may take; later its outcome is not waited for.
    declarations: functions that the model may call, {"name", "description", "parameters"}; none if it works before the answer only.
    """

    seconds: float = 60.0
    declarations: Sequence[Mapping[str, Any]] = ()

    def shown(self, call: content.FunctionCall) -> tuple[Part, ...]:
        """How the client sees a call; not as a functionCall, which would ask it to answer."""
        return ()

    def run(self, call: content.FunctionCall, leave: Leave) -> Outcome:
        """Do what the model asked for. What it did wrong is an outcome too, for it to read; errors that are raised end the answer."""
        raise AssertionError(f"{type(self).__name__} declares no functions, so the model cannot have called one")

    def before(self, turns: Sequence[content.Content], room: Room) -> Context | None:
        """What to read before the last turn of the user; None for nothing. Called once, before the prompt is written."""
        return None

    def after(self, text: str, found: Found) -> Mapping[str, Any]:
        """Fields of the candidate (serve/wire/generate.py) about what was found, such as grounding_metadata. text: the whole answer."""
        return {}


class Enabled(Protocol):
    """A tool as the operator enabled it."""

    def open(self, asked: Any, owner: str) -> ServerTool:
        """The tool for a request. asked: what stands in `tools`; owner: who asks. Blocks. Raises ApiError 400, 403."""
