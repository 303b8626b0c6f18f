"""The rounds of an answer: when the model has called tools of the server, they run, and it goes on behind what they returned.

A round is one request of the engine. The deadline and the most tokens of the API's request hold for all of them together; in the last
round that is allowed the model may not call them any more, and has to answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator
from typing import Any

from pollux import content
from pollux.generate.requests import DeadlineExceeded, Request
from pollux.serve.prepare import Plan, constraint_of, more_tokens, write_prompt
from pollux.serve.server import Server
from pollux.serve.tools.tool import Leave, Outcome, ServerTool
from pollux.serve.wire.enums import FinishReason
from pollux.serve.writing import Writing
from pollux.tokens.interleave import count

GRACE = 5.0  # seconds that a tool may take to end after its own time
_SEEDS = 0x9E3779B1  # between the rounds of an answer, whose random choices are not to be the same again


class Rounds:
    """request: of the round that is next; None when there is no other. fed: tokens, by modality, that the tools put into the prompts."""

    def __init__(self, server: Server, plan: Plan, writings: list[Writing]):
        self._server, self._plan, self._writings = server, plan, writings
        self.request: Request | None = plan.request
        self.fed = dict(plan.found_tokens)
        self._turns = list(plan.turns)
        self._number = 1

    async def end(self) -> AsyncGenerator[None, None]:
        """Run what the round that has ended has called; afterwards `request` is the next. Gives control back whenever a writing has grown.

        Raises DeadlineExceeded, and what tools raise.
        """
        request, self.request = self.request, None
        assert request is not None
        waiting = [writing for writing in self._writings if writing.waits]  # one at most: prepare.py allows several without calls only
        for writing in waiting:
            if not await self._server.run_writing(writing.judged):
                return
            said = content.Content("model", writing.result.parts if writing.result is not None else ())
            answered: list[content.Part] = []
            for call in writing.pending:
                outcome = await self._run(self._plan.tools.by_name[call.name], call, request.deadline)
                writing.add(outcome.parts)
                answered += [content.FunctionResponse(call.name, dict(outcome.response), call.id), *outcome.media]
                yield
                if writing.finish is not None:  # what the tool showed is not to be seen
                    return
            if writing.asks_client:
                writing.end()
                return
            self._turns += [said, content.Content("tool", tuple(answered))]
            self.request = await self._server.run(self._next, writing, request)
            if self.request is None:
                writing.end(FinishReason.MAX_TOKENS, "what the tools returned leaves no room for an answer")
            else:
                self._number += 1
                writing.begin_round(self.request.constraint)

    async def _run(self, tool: ServerTool, call: content.FunctionCall, deadline: float | None) -> Outcome:
        left = (time.monotonic() + self._server.settings.timeout if deadline is None else deadline) - time.monotonic()
        leave, begun, loop = Leave(max(0.0, min(tool.seconds, left))), asyncio.Event(), asyncio.get_running_loop()

        def work() -> Outcome:
            loop.call_soon_threadsafe(begun.set)
            return Outcome({"error": "cancelled"}) if leave.ended.is_set() else tool.run(call, leave)

        end = loop.time() + left
        running = asyncio.ensure_future(self._server.run_tool(work))
        whole = asyncio.timeout_at(end)
        try:
            async with whole:
                await begun.wait()
                async with asyncio.timeout(tool.seconds + GRACE):
                    outcome = await running
        except TimeoutError as error:
            if whole.expired():
                raise DeadlineExceeded("the request was not answered in time: a tool of the server was still at work") from error
            outcome = Outcome({"error": f"no result after {tool.seconds:g} seconds"})
        finally:
            leave.ended.set()
            running.cancel()
        self._plan.tools.note(tool, outcome.found)
        return outcome

    def _next(self, writing: Writing, last: Request) -> Request | None:
        """The request of the next round; None if no token is left for it. Blocks. Notes what it feeds."""
        plan, served, result = self._plan, self._plan.served, writing.result
        assert result is not None
        config = plan.asked.generation_config
        prompt = write_prompt(served, self._turns, config, plan.variables)
        before = count(last.prompt)
        for name, number in result.usage.output.items():
            before[name] = before.get(name, 0) + number
        for name, number in more_tokens(count(prompt), before).items():
            self.fed[name] = self.fed.get(name, 0) + number
        most = min(last.sampling.max_output_tokens - result.usage.output_tokens, served.input_limit - len(prompt))
        if most < 1:
            return None
        may_call = self._number < self._server.settings.tool_rounds
        changes: dict[str, Any] = {"max_output_tokens": most, "seed": (last.sampling.seed + _SEEDS) % 2**32}
        if plan.request.sampling.max_thought_tokens is not None:
            changes["max_thought_tokens"] = max(0, plan.request.sampling.max_thought_tokens - writing.thought_tokens)
        return dataclasses.replace(
            last,
            prompt=prompt,
            sampling=dataclasses.replace(last.sampling, **changes),
            constraint=constraint_of(served.model, plan.asked, plan.modalities, plan.tools, most, may_call),
        )
