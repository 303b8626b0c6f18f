"""The host side of one row: ids become parts as they arrive, stop strings cut the text, and a `Result` sums it up."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import PIL.Image

from pollux.content import Image, Part, Text
from pollux.generate.sampler import Sampling
from pollux.tokens.interleave import PictureCodec, decode_parts
from pollux.tokens.sequence import Modality
from pollux.tokens.vocabulary import Vocabulary

OWN, ACCEPTED, REPLACED = 0, 1, 2  # with a draft, a token is the model's own, was drafted, or stands in place of a rejected one


@dataclass(frozen=True)
class Usage:
    """Tokens per modality, for example prompt = {"text": 12, "image": 9}; how speculation went, 0 without a draft."""

    prompt: dict[str, int]
    output: dict[str, int]
    rounds: int = 0  # passes of the model over a draft
    accepted: int = 0  # tokens of the output that were drafted
    rejected: int = 0  # those that stand in place of a drafted one
    cached: int = field(default=0, compare=False)  # tokens of the prompt whose keys and values were still in the cache

    @property
    def prompt_tokens(self) -> int:
        return sum(self.prompt.values())

    @property
    def output_tokens(self) -> int:
        return sum(self.output.values())

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that the model looked at, and let stand; 0 without a draft."""
        return self.accepted / max(self.accepted + self.rejected, 1)


@dataclass(frozen=True, eq=False)
class Result:
    """What a model wrote. finish_reason: "stop" (end of turn or a stop string) or "length" (an unfinished drawing or call is left out)."""

    parts: tuple[Part, ...]
    ids: np.ndarray  # int32 [n], with the id that ended the turn, up to the token that completed a stop string
    logprobs: np.ndarray  # float32 [n], of each id under the model's own distribution over the allowed ids
    finish_reason: str
    usage: Usage

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def images(self) -> list[PIL.Image.Image]:
        return [PIL.Image.fromarray(part.pixels()) for part in self.parts if isinstance(part, Image)]


class Answer:
    """One row while it grows. `finish_reason` is "" until it ends."""

    def __init__(self, sampling: Sampling, usage: dict[str, int], vocabulary: Vocabulary, codec: PictureCodec | None):
        self.sampling, self.finish_reason = sampling, ""
        self._prompt_usage, self._vocabulary, self._codec = usage, vocabulary, codec
        self.cached = 0  # tokens of the prompt that were not computed again
        spans = [name for name in ("draw", "call", "thought") if f"</{name}>" in vocabulary.specials]
        self._openings = {vocabulary.specials[f"<{name}>"] for name in spans}
        self._closings = {vocabulary.specials[f"</{name}>"] for name in spans}
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._origins: list[int] = []
        self._closed: tuple[Part, ...] = ()  # parts up to the last closed drawing or call
        self._open_from = 0  # first id after them
        self._text = GrowingText(vocabulary)  # after them, up to the opening of a drawing or call
        self._opened = False
        self._looked_at = 0  # characters of the open text in which there is no stop string
        self._cut: int | None = None  # characters of the open text before a stop string
        self._sent = 0  # closed parts that `fresh` has returned
        self._sent_characters = 0  # of the text after those

    def extend(self, ids: Iterable[int], logprobs: Iterable[float], origins: Iterable[int] = ()) -> int:
        """Take the ids of one dispatch and return how many were taken; those after the end are dropped. origins: of each id, if there is a
        draft (speculate.py)."""
        before = len(self._ids)
        for i, logprob, origin in itertools.zip_longest(ids, logprobs, origins):
            if i < 0 or self.finish_reason:
                break
            self._ids.append(i)
            self._logprobs.append(logprob)
            if origin is not None:
                self._origins.append(origin)
            if i in self._closings:
                self._closed += decode_parts(self._ids[self._open_from :], self._vocabulary, self._codec)
                self._open_from = len(self._ids)
                self._text, self._opened, self._looked_at = GrowingText(self._vocabulary), False, 0
            elif i in self._vocabulary.stops:
                self.finish_reason = "stop"
            else:
                self._opened |= i in self._openings
                if not self._opened and i not in self._vocabulary.special_ids:
                    self._text.append(i)
                    self._look_for_stop_strings()
        if not self.finish_reason and len(self._ids) >= self.sampling.max_output_tokens:
            self.finish_reason = "length"
        return len(self._ids) - before

    def fresh(self) -> tuple[Part, ...]:
        """What is certain since the last call: text that no further byte or stop string can change, whole pictures and calls."""
        tail = self._tail()
        held = len(tail) if self.finish_reason else self._certain(tail)
        parts = [*self._closed[self._sent :], *([Text(tail[:held])] if held else [])]
        if parts and isinstance(parts[0], Text):
            parts[0] = Text(parts[0].text[self._sent_characters :])
        self._sent, self._sent_characters = len(self._closed), held
        return tuple(part for part in parts if not isinstance(part, Text) or part.text)

    def result(self) -> Result:
        assert self.finish_reason, "the answer has not ended"
        tail = self._tail()
        ids = np.array(self._ids, np.int32)
        drawn = 0
        if "</draw>" in self._vocabulary.specials:
            drawn = int(np.sum((ids >= self._vocabulary.code_offset) | (ids == self._vocabulary.specials["</draw>"])))
        output = {Modality.TEXT.name.lower(): len(ids) - drawn, Modality.DRAW.name.lower(): drawn}
        accepted, rejected = self._origins.count(ACCEPTED), self._origins.count(REPLACED)
        rounds = len(self._origins) - accepted + (self._origins[-1:] == [ACCEPTED])  # a round that was cut short has no last token
        usage = Usage(
            self._prompt_usage, {name: number for name, number in output.items() if number}, rounds, accepted, rejected, self.cached
        )
        parts = (*self._closed, *([Text(tail)] if tail else []))
        return Result(parts, ids, np.array(self._logprobs, np.float32), self.finish_reason, usage)

    def _tail(self) -> str:
        """The text after the last closed part, cut before a stop string."""
        return self._text.read() if self._cut is None else self._text.read()[: self._cut]

    def _look_for_stop_strings(self) -> None:
        if not self.sampling.stop:
            return
        # What was there before the last token held none, so one that is there now ends among the newest characters.
        text = self._text.read()
        newest = max(0, self._looked_at - max(map(len, self.sampling.stop)))
        found = [at for stop in self.sampling.stop if (at := text.find(stop, newest)) >= 0]
        self._looked_at = len(text.rstrip("\ufffd"))
        if found:
            self._cut, self.finish_reason = min(found), "stop"

    def _certain(self, text: str) -> int:
        """Characters of an open text that stay as they are: not an unfinished UTF-8 sequence, not the start of a stop string."""
        whole = text.rstrip("\ufffd")
        return len(whole) - max((_overlap(whole, stop) for stop in self.sampling.stop), default=0)


class GrowingText:
    """The text of ids that come one by one; what no later id can change is decoded once."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self._known = ""
        self._last: list[int] = []  # the last id of the known text, since decoders may treat a first id in a way of its own
        self._new: list[int] = []

    def append(self, i: int) -> None:
        self._new.append(i)

    def read(self) -> str:
        if not self._new:
            return self._known
        text = self._vocabulary.decode([*self._last, *self._new])[len(self._vocabulary.decode(self._last)) :]
        if text.endswith("\ufffd"):
            return self._known + text
        self._known, self._last, self._new = self._known + text, self._new[-1:], []
        return self._known


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a beginning of stop."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
