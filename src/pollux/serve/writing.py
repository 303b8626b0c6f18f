"""One candidate while it is written: pieces of the engine in, parts of an answer out. Where the model calls tools of the server, the
engine writes it in several rounds (tools/rounds.py).

Thoughts and calls that cannot be read are found in the ids, since the engine leaves out the one and gives the other as text. Nothing
is given out that belongs together with what comes next: the last letter of a text waits, so that the last chunk of a stream has both
text and finishReason; where a scorer judges, the last word waits, so that no blocked word goes out in halves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pollux import content
from pollux.generate.answer import GrowingText, Result
from pollux.generate.ending import Ending
from pollux.generate.requests import Constraint, Piece
from pollux.serve.content import write_part
from pollux.serve.prepare import Plan
from pollux.serve.safety import Verdict
from pollux.serve.wire.content import Content, Part
from pollux.serve.wire.enums import FinishReason, ResponseModality
from pollux.serve.wire.generate import Candidate, LogprobsResult, TokenLogprob, TopCandidates
from pollux.tokens.calls import read_call
from pollux.tokens.vocabulary import Vocabulary

REASONS = {"stop": FinishReason.STOP, "length": FinishReason.MAX_TOKENS}
_CHANNEL = "thought\n"  # the name of a channel, with which the thoughts of Gemma 4 begin
_LAST_WORD = re.compile(r"\S*\s*\Z")


class Writing:
    """Its methods block: they decode and score text, and make PNGs."""

    def __init__(self, plan: Plan, index: int):
        assert plan.served.model.vocabulary is not None, "prepare.py reads no contents without a tokenizer"
        self.plan, self.index, self._vocabulary = plan, index, plan.served.model.vocabulary
        self.finish: FinishReason | None = None
        self.tokens = self.drawn_tokens = self.thought_tokens = 0  # all; those of pictures; those of thoughts
        self._drew = False
        self._text = ""  # without thoughts
        self._judged = ""  # all that a scorer looks at
        self._verdict = Verdict()
        self._message = ""
        self._held: list[Part] = []
        self._chosen: list[TokenLogprob] = []
        self._top: list[TopCandidates] = []
        self._sum = 0.0
        self._given_out = False  # all of it, with the finish
        self.begin_round(plan.request.constraint)

    def begin_round(self, constraint: Constraint | None) -> None:
        """What comes from now on is of the engine's next answer."""
        self._constraint = constraint
        self._ids: list[int] = []
        self._thoughts, self._calls = _Spans(self._vocabulary, "thought"), _Spans(self._vocabulary, "call")
        self._thoughts_given = 0  # characters
        self.pending: list[content.FunctionCall] = []  # calls of tools of the server
        self.asks_client = False  # to call functions, too
        self.result: Result | None = None  # of the round, once it has ended

    @property
    def waits(self) -> bool:
        """Whether the round has ended with calls that the server has to run."""
        return self.result is not None and self.finish is None

    def take(self, piece: Piece) -> None:
        """Note what a piece adds; nothing more after the end."""
        if self.finish is not None:
            return
        self._count(piece)
        for part in self._fresh(piece):
            self._hold(part)
        if piece.finish_reason:
            self.result = piece.result
            self.finish = FinishReason.MAX_TOKENS if self._was_cut_short() else REASONS[piece.finish_reason]
            if self._calls.unreadable:
                self.finish, self._message = FinishReason.MALFORMED_FUNCTION_CALL, f"Malformed function call: {self._calls.unreadable[0]}"
            elif ResponseModality.TEXT not in self.plan.modalities and not self._drew:
                self.finish = FinishReason.NO_IMAGE
            elif self.pending and self.finish == FinishReason.STOP:
                self.finish = None

    def add(self, parts: Iterable[Part]) -> None:
        """What a tool of the server shows."""
        for part in parts:
            self._hold(part)

    def end(self, reason: FinishReason = FinishReason.STOP, message: str = "") -> None:
        self.finish, self._message = reason, message

    def judged(self) -> bool:
        """Whether what there is so far may be acted upon; if not, the answer ends here."""
        if self.plan.safety.active:
            self._verdict = self.plan.safety.judge(self._judged)
            if self._verdict.blocked:
                self.finish, self._held, self._message = FinishReason.SAFETY, [], ""
        return not self._verdict.blocked

    def give(self) -> Candidate | None:
        """What may be given out since the last call; None if that is nothing. With the finish, once it has ended."""
        if self._given_out:
            return None
        self.judged()
        parts = self._certain()
        if not parts and self.finish is None:
            return None
        chosen, top = tuple(self._chosen), tuple(self._top)
        self._chosen, self._top = [], []
        ended = self._given_out = self.finish is not None
        return Candidate(
            **(self.plan.tools.after(self._text) if ended else {}),
            content=Content(tuple(parts), "model"),
            finish_reason=self.finish,
            finish_message=self._message,
            index=self.index,
            safety_ratings=self._verdict.ratings,
            token_count=self.tokens if ended else None,
            avg_logprobs=self._sum / self.tokens if ended and self.tokens else None,
            logprobs_result=LogprobsResult(top, chosen, sum(t.log_probability or 0.0 for t in chosen)) if chosen else None,
        )

    def _count(self, piece: Piece) -> None:
        codes, closing = self._vocabulary.code_offset, self._vocabulary.specials.get("</draw>")
        self.tokens += len(piece.ids)
        self._ids += piece.ids
        if self._vocabulary.template is None:
            self.drawn_tokens += sum(i >= codes or i == closing for i in piece.ids)
        self._sum += sum(piece.logprobs)
        self.thought_tokens += self._thoughts.feed(piece.ids)
        self._calls.feed(piece.ids)
        if self.plan.logprobs:
            self._chosen += [self._token(i, logprob) for i, logprob in zip(piece.ids, piece.logprobs, strict=True)]
            self._top += [TopCandidates(tuple(self._token(*pair) for pair in pairs)) for pairs in piece.top]

    def _was_cut_short(self) -> bool:
        """Whether the constraint closed the answer because its tokens ran out."""
        return isinstance(self._constraint, Ending) and self._constraint.closed(self._ids)

    def _token(self, i: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(self._vocabulary.decode([i]), i, float(logprob))

    def _fresh(self, piece: Piece) -> Iterable[Part]:
        thoughts = self._thoughts.text(whole=bool(piece.finish_reason))
        if self._thoughts.is_open and _CHANNEL.startswith(thoughts.lstrip()):
            thoughts = ""  # it may become the name
        thoughts = thoughts.lstrip().removeprefix(_CHANNEL)
        if self.plan.thoughts and len(thoughts) > self._thoughts_given:
            yield Part(text=thoughts[self._thoughts_given :], thought=True)
            self._thoughts_given = len(thoughts)
        for part in piece.parts:
            if isinstance(part, content.Text):
                if part.text in self._calls.unreadable or ResponseModality.TEXT not in self.plan.modalities:
                    continue
            elif isinstance(part, content.Image):
                self._drew = True
                if ResponseModality.IMAGE not in self.plan.modalities:
                    continue
            elif isinstance(part, content.FunctionCall) and part.name in self.plan.tools.by_name:
                self.pending.append(part)
                yield from self.plan.tools.by_name[part.name].shown(part)
                continue
            elif isinstance(part, content.FunctionCall):
                self.asks_client = True
            yield write_part(part)

    def _hold(self, part: Part) -> None:
        self._text += "" if part.thought else part.text or ""
        self._judged += "".join(
            text
            for text in (
                part.text,
                part.executable_code and part.executable_code.code,
                part.code_execution_result and part.code_execution_result.output,
            )
            if text
        )
        last = self._held[-1] if self._held else Part()
        if part.text is not None and last.text is not None and part.thought == last.thought:
            self._held[-1] = Part(text=last.text + part.text, thought=part.thought)
        else:
            self._held.append(part)

    def _certain(self) -> list[Part]:
        """The parts that need not wait any more."""
        if self.finish is not None or self.waits or not self._held:
            given, self._held = self._held, []
            return given
        given, last = self._held[:-1], self._held[-1]
        if last.text is None:
            self._held = [last]
            return given
        held = _LAST_WORD.search(last.text)[0] if self.plan.safety.active else last.text[-1:]  # type: ignore[index]
        if len(held) < len(last.text):
            given.append(Part(text=last.text[: len(last.text) - len(held)], thought=last.thought))
        self._held = [Part(text=held, thought=last.thought)]
        return given


class _Spans:
    """The spans between <name> and </name> among ids that come bit by bit."""

    def __init__(self, vocabulary: Vocabulary, name: str):
        self._vocabulary, self._name = vocabulary, name
        self._opening, self._closing = (vocabulary.specials.get(mark, -1) for mark in (f"<{name}>", f"</{name}>"))
        self.is_open = False
        self._text = GrowingText(vocabulary)  # of thoughts: all; of calls: of the open one
        self.unreadable: list[str] = []  # calls

    def feed(self, ids: Iterable[int]) -> int:
        """Returns how many of the ids belong to spans, markers included."""
        tokens = 0
        for i in ids:
            if i == self._opening and not self.is_open:
                self.is_open = True
                tokens += 1
            elif self.is_open:
                tokens += 1
                if i == self._closing:
                    self.is_open = False
                    self._close()
                else:
                    self._text.append(i)
        return tokens

    def text(self, whole: bool) -> str:
        """All so far; unless it is the whole, without what further bytes could change."""
        text = self._text.read()
        return text if whole or not self.is_open else text.rstrip("\ufffd")

    def _close(self) -> None:
        if self._name == "call":
            written = self._text.read()
            if isinstance(read_call(written), content.Text):
                self.unreadable.append(written)
            self._text = GrowingText(self._vocabulary)
