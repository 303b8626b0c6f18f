"""An interaction while it is written, and its events for whoever follows it: from the start, or from behind an event that they have seen.

Events are made from the steps as they stand, so a finished interaction tells the same story as a running one. The id of an event says
what has been told with it: "created", "2.0.17" (of step 2, block 0 up to letter 17), "2.stop" or "completed".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from pollux.serve.answer import chunks
from pollux.serve.errors import ApiError, api_error, invalid
from pollux.serve.interactions.looked_up import annotate, looked_up, searches
from pollux.serve.interactions.steps import CODE, CODE_RESULT, LOOKED_UP, Answer, Json, blocks_of, written_usage
from pollux.serve.prepare import Plan
from pollux.serve.server import Server
from pollux.serve.wire.enums import FinishReason
from pollux.serve.wire.generate import GenerateContentResponse

RUNNING = "in_progress"
_AT_ONCE = (CODE, CODE_RESULT, *LOOKED_UP)  # steps that are known as a whole
_EVENT = re.compile(r"created|completed|(\d{1,6})\.(?:stop|(\d{1,6})\.(\d{1,9}))")


@dataclass(eq=False)
class Run:
    """data: what the API shows of it besides id and steps. given: the steps of its input; steps: of its answer, which only grow."""

    id: str
    owner: str
    data: Json
    given: list[Json]
    steps: list[Json] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)  # another one after each
    task: asyncio.Task[None] | None = None  # that writes it
    watch: asyncio.Task[None] | None = None  # that looks after it at other servers
    error: ApiError | None = None  # that broke it off

    @property
    def ended(self) -> bool:
        return self.data["status"] != RUNNING

    def shown(self, steps: bool = True, given: bool = False) -> Json:
        """As the API shows it, with the steps of the answer, and of the input."""
        shown = {"id": self.id, "object": "interaction"} | self.data
        return shown | ({"steps": self.steps} if steps else {}) | ({"input": self.given} if given else {})

    async def write(self, server: Server, plan: Plan) -> str:
        """Let the model write the answer; returns the status for `end`. What goes wrong is noted; cancelling is an end, too."""
        answer = Answer(looked_up(plan))
        self.steps, status = answer.steps, "failed"
        try:
            async with contextlib.aclosing(chunks(server, plan)) as arriving:
                async for chunk in arriving:
                    status = self._take(answer, chunk) or status
                    self._tell()
        except asyncio.CancelledError:
            return "cancelled"
        except Exception as error:
            self.error = api_error(error)
            self.fail(self.error)
        return status

    def end(self, status: str, updated: str) -> None:
        self.data |= {"status": status, "updated": updated}
        self._tell()

    async def wait(self) -> None:
        """Until it has ended."""
        while not self.ended:
            await self.news.wait()

    def fail(self, error: ApiError) -> None:
        self.data["errors"] = [{"code": error.status.lower(), "message": error.message}]

    def _take(self, answer: Answer, chunk: GenerateContentResponse) -> str:
        """Note a chunk; the status that it leads to if it is the last."""
        if chunk.usage_metadata is not None:
            self.data["usage"] = written_usage(chunk.usage_metadata) | searches(answer.steps)
        if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason is not None:
            self.fail(invalid(f"the input is blocked: {chunk.prompt_feedback.block_reason.name}"))
        status = ""
        for candidate in chunk.candidates:
            for part in candidate.content.parts if candidate.content is not None else ():
                answer.add(part)
            if candidate.grounding_metadata is not None:  # in the last chunk, with which all that it speaks of has been written
                annotate(answer.steps, candidate.grounding_metadata)
            if candidate.finish_reason == FinishReason.STOP:
                status = "requires_action" if answer.calls else "completed"
            elif candidate.finish_reason == FinishReason.MAX_TOKENS:
                status = "incomplete"
            elif candidate.finish_reason is not None:
                status = "failed"
                self.fail(invalid(candidate.finish_message or f"the answer ended with {candidate.finish_reason.name}"))
        return status

    def _tell(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()

    def events(self, after: str = "") -> AsyncIterator[Json]:
        """All that happens until the end, from behind the event of the id `after`. Raises ApiError 400 if there can be no such event."""
        return self._events(_Place.of(after), first=not after, last=after != "completed")

    async def _events(self, place: _Place, first: bool, last: bool) -> AsyncIterator[Json]:
        if first:
            begun = self.shown(steps=False) | {"status": RUNNING}
            yield {"event_type": "interaction.created", "event_id": "created", "interaction": begun}
        while True:
            news, ended = self.news, self.ended
            for event in place.catch_up(self.steps, ended):
                yield event
            if ended:
                break
            await news.wait()
        if self.data.get("errors"):
            yield {"event_type": "error", "error": self.data["errors"][0]}
        if last:
            yield {"event_type": "interaction.completed", "event_id": "completed", "interaction": self.shown(steps=False)}


@dataclass
class _Place:
    """How far events have told the steps: all before `step`; of it, if it is open, all blocks before `block` and `letters` of that."""

    step: int = 0
    open: bool = False
    block: int = 0
    letters: int = 0

    @classmethod
    def of(cls, event_id: str) -> _Place:
        match = _EVENT.fullmatch(event_id or "created")
        if match is None:
            raise invalid(f"last_event_id is {event_id!r:.60}, which is no event of an interaction")
        if match[2] is not None:
            return cls(int(match[1]), True, int(match[2]), int(match[3]))
        return cls(int(match[1]) + 1) if match[1] else cls(1 << 30 if event_id == "completed" else 0)

    def catch_up(self, steps: list[Json], ended: bool) -> Iterator[Json]:
        """The events of what was not told yet."""
        while self.step < len(steps):
            step = steps[self.step]
            if not self.open:
                self.open, self.block, self.letters = True, 0, 0
                yield self._event("step.start", step=_begun(step))
            if self.block == 0 and (delta := _whole(step)) is not None:
                self.block = 1
                yield self._event("step.delta", delta=delta)
            yield from self._blocks(step)
            if self.step == len(steps) - 1:
                if not ended:
                    return
                yield from self._citations(steps)
            yield {"event_type": "step.stop", "event_id": f"{self.step}.stop", "index": self.step}
            self.step, self.open = self.step + 1, False

    def _blocks(self, step: Json) -> Iterator[Json]:
        blocks = blocks_of(step)
        while self.block < len(blocks):
            block = blocks[self.block]
            text = block.get("text", "")
            if block["type"] != "text":
                self.letters = 0
                self.block += 1
                yield self._event("step.delta", delta=block)
                continue
            if self.letters < len(text):
                told = {"type": "text", "text": text[self.letters :]}
                self.letters = len(text)
                yield self._event("step.delta", delta={"type": "thought_summary", "content": told} if step["type"] == "thought" else told)
            if self.block == len(blocks) - 1:
                return  # it may still grow
            self.block, self.letters = self.block + 1, 0

    def _citations(self, steps: list[Json]) -> Iterator[Json]:
        """What the texts of all steps rest on, which is known at the end; told as if it were one letter more behind the last."""
        blocks = blocks_of(steps[self.step])
        letters = len(blocks[self.block].get("text", "")) if self.block < len(blocks) else 0
        cited = [(i, block["annotations"]) for i, step in enumerate(steps) for block in blocks_of(step) if "annotations" in block]
        if self.letters > letters:
            return
        for number, (i, citations) in enumerate(cited, 1):
            self.letters = letters + (number == len(cited))
            yield self._event("step.delta", delta={"type": "text_annotation_delta", "annotations": citations}) | {"index": i}

    def _event(self, kind: str, **fields: Json) -> Json:
        return {"event_type": kind, "event_id": f"{self.step}.{self.block}.{self.letters}", "index": self.step} | fields


def _whole(step: Json) -> Json | None:
    """The one delta of a step that comes as one; None for steps of blocks."""
    if step["type"] == "function_call":
        return {"type": "arguments_delta", "arguments": json.dumps(step["arguments"])}
    if step["type"] in _AT_ONCE:
        return {name: value for name, value in step.items() if name not in ("id", "call_id")}
    return None


def _begun(step: Json) -> Json:
    if step["type"] == "function_call" or step["type"] in _AT_ONCE:
        return {name: type(value)() if name in ("arguments", "result") else value for name, value in step.items()}
    return {"type": step["type"]}
