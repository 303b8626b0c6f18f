"""One live session: the conversation so far, what the user is just saying, and the answer that is just being written.

An answer runs as a task beside the messages that arrive. What the user says while it runs cancels it; what was sent of it until then
stays in the conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

import numpy as np

from pollux.media import encode_audio
from pollux.serve.answer import chunks
from pollux.serve.errors import invalid
from pollux.serve.generate import to_the_end
from pollux.serve.live.speech import MOST_SECONDS, Microphone
from pollux.serve.prepare import Caller, Plan, prepare
from pollux.serve.server import Server
from pollux.serve.store import new_id
from pollux.serve.wire.content import Blob, Content, FunctionCall, FunctionResponse, Part
from pollux.serve.wire.enums import FinishReason
from pollux.serve.wire.generate import Candidate, GenerateContentRequest, UsageMetadata
from pollux.serve.wire.live import (
    ActivityHandling,
    ClientContent,
    ClientMessage,
    LiveUsage,
    RealtimeInput,
    ServerContent,
    ServerMessage,
    Setup,
    ToolCall,
    ToolCallCancellation,
    ToolResponse,
    TurnCompleteReason,
)

MOST_FRAMES = 64  # of a camera, the latest, that go into one turn
_RATE = re.compile(r"(?:^|;)\s*rate=(\d{1,6})\s*(?:;|$)")
_RATES = range(8000, 96_001)
_USUAL_RATE = 16_000
_REASONS = {
    FinishReason.SAFETY: TurnCompleteReason.RESPONSE_REJECTED,
    FinishReason.MALFORMED_FUNCTION_CALL: TurnCompleteReason.MALFORMED_FUNCTION_CALL,
}


class Session:
    """send: takes a message to the client. fail: ends the session for an error. keep: is given the conversation after each turn."""

    def __init__(
        self,
        server: Server,
        setup: Setup,
        caller: Caller,
        send: Callable[[ServerMessage], Awaitable[None]],
        fail: Callable[[Exception], Awaitable[None]],
        keep: Callable[[list[Content]], Awaitable[None]] | None = None,
    ):
        self.server, self.setup, self.caller = server, setup, caller
        self.send, self.fail, self.keep = send, fail, keep
        self.served = server.find(setup.model)
        self.history: list[Content] = []
        self._detection = setup.realtime_input_config.automatic_activity_detection
        self._microphone: Microphone | None = None  # from the first sound on, which tells the rate
        self._open = False  # where the client says when speech begins: it has begun
        self._odd = b""  # half of a sample
        self._frames: deque[Part] = deque(maxlen=MOST_FRAMES)
        self._said: list[Part] = []  # by the user, in a turn that is not complete
        self._calls: dict[str, str] = {}  # names of calls that wait for their results, by id
        self._results: list[Part] = []
        self._answering: asyncio.Task[None] | None = None
        self._speaking = False  # the answer is not complete, so it can be interrupted

    async def check(self) -> None:
        """Raises ApiError for a setup that no turn could be answered with."""
        padding, silence = self._detection.prefix_padding_ms, self._detection.silence_duration_ms
        for name, value in (("prefixPaddingMs", padding), ("silenceDurationMs", silence)):
            if value is not None and not 0 <= value <= MOST_SECONDS * 1000:
                raise invalid(f"automaticActivityDetection.{name} is {value} but must be between 0 and {MOST_SECONDS * 1000}")
        await self._plan([Content((Part(text="a"),), "user")], look_up=False)

    async def take(self, message: ClientMessage) -> None:
        """Act on a message. Raises ApiError for one that makes no sense."""
        if message.client_content is not None:
            await self._take_content(message.client_content)
        elif message.realtime_input is not None:
            await self._take_realtime(message.realtime_input)
        elif message.tool_response is not None:
            await self._take_results(message.tool_response)
        elif message.setup is not None:
            raise invalid("setup must come once, as the first message")
        else:
            raise invalid("a message must have clientContent, realtimeInput or toolResponse")

    @property
    def answering(self) -> bool:
        """Whether an answer is under way."""
        return self._answering is not None and not self._answering.done()

    async def answered(self) -> None:
        """Wait until no answer is under way."""
        while self._answering is not None and self.answering:
            await asyncio.wait({self._answering})

    async def close(self) -> None:
        """End what runs."""
        if self._answering is not None:
            self._answering.cancel()
            await asyncio.gather(self._answering, return_exceptions=True)

    async def _take_content(self, given: ClientContent) -> None:
        await self._interrupt()
        self.history += given.turns
        if given.turn_complete:
            await self._ask([])

    async def _take_realtime(self, given: RealtimeInput) -> None:
        if given.activity_start is not None or given.activity_end is not None:
            if not self._detection.disabled:
                raise invalid("activityStart and activityEnd need automaticActivityDetection.disabled in the setup")
            await (self._begin() if given.activity_start is not None else self._end())
        blobs = [*given.media_chunks, *(blob for blob in (given.audio, given.video) if blob is not None)]
        for blob in blobs:
            kind = blob.mime_type.partition("/")[0]
            if kind == "image":
                self._frames.append(Part(inline_data=blob))
            elif kind == "audio":
                await self._hear(blob)
            else:
                raise invalid(f"realtimeInput takes image/* and audio/pcm, not {blob.mime_type!r:.60}")
        if given.text:
            self._said.append(Part(text=given.text))
            if not self._detection.disabled:
                await self._cut_in()
                await self._end()
        if given.audio_stream_end and self._microphone is not None and self._microphone.speaking:
            await self._end()

    async def _hear(self, blob: Blob) -> None:
        if not blob.mime_type.startswith("audio/pcm"):
            raise invalid(f"sound must come as audio/pcm, 16 bits and one channel, not {blob.mime_type!r:.60}")
        match = _RATE.search(blob.mime_type)
        rate = int(match[1]) if match else _USUAL_RATE
        if rate not in _RATES:
            raise invalid(f"the rate of audio/pcm must be from {_RATES[0]} to {_RATES[-1]} Hz, not {rate}")
        if self._microphone is None:
            self._microphone = Microphone(self._detection, rate)
            if self._open:
                self._microphone.begin()
        elif self._microphone.rate != rate:
            raise invalid(f"the sound of a session must keep its rate of {self._microphone.rate} Hz; here came {rate} Hz")
        data = self._odd + blob.data
        self._odd = data[len(data) & ~1 :]
        for begun in self._microphone.hear(np.frombuffer(data[: len(data) & ~1], "<i2")):
            await (self._begin() if begun else self._end())

    async def _begin(self) -> None:
        """The user begins to speak."""
        if self._detection.disabled:
            self._open = True
            if self._microphone is not None:
                self._microphone.begin()
        await self._cut_in()

    async def _cut_in(self) -> None:
        if self.setup.realtime_input_config.activity_handling != ActivityHandling.NO_INTERRUPTION:
            await self._interrupt()

    async def _end(self) -> None:
        """The user has said what there was to say."""
        self._open = False
        if self._microphone is not None:
            sound = self._microphone.take()
            if len(sound):
                wave = await self.server.run(encode_audio, sound / 32768.0, self._microphone.rate)
                self._said.insert(0, Part(inline_data=Blob("audio/wav", wave)))
        said, self._said = [*self._frames, *self._said], []
        self._frames.clear()
        if said:
            await self._ask(said)

    async def _take_results(self, given: ToolResponse) -> None:
        for response in given.function_responses:
            name = self._calls.pop(response.id, None)
            if name is None:
                raise invalid(f"there is no call with the id {response.id!r:.60} that waits for its result")
            self._results.append(
                Part(function_response=FunctionResponse(response.id, response.name or name, response.response, response.parts))
            )
        if self._results and not self._calls:
            results, self._results = self._results, []
            await self._ask(results)

    async def _interrupt(self) -> None:
        """The user has something to say: whatever is under way ends."""
        if self._speaking:
            await self.close()
            self._speaking = False
            await self.send(ServerMessage(server_content=ServerContent(interrupted=True)))
            await self.send(ServerMessage(server_content=ServerContent(turn_complete=True)))
        elif self._answering is not None:
            await asyncio.gather(self._answering, return_exceptions=True)  # calls are told before they are taken back
        if self._calls:
            await self.send(ServerMessage(tool_call_cancellation=ToolCallCancellation(tuple(self._calls))))
            self._calls, self._results = {}, []

    async def _ask(self, said: Iterable[Part]) -> None:
        """Answer the conversation, which these parts of the user end."""
        if self._answering is not None:
            await asyncio.gather(self._answering, return_exceptions=True)  # without interruption, one answer after the other
        if said := tuple(said):
            self.history.append(Content(said, "user"))
        self._answering, self._speaking = asyncio.create_task(self._answer()), True

    async def _plan(self, contents: list[Content], look_up: bool = True) -> Plan:
        setup = self.setup
        request = GenerateContentRequest(
            contents=tuple(contents),
            system_instruction=setup.system_instruction,
            tools=setup.tools,
            safety_settings=setup.safety_settings,
            generation_config=setup.generation_config,
        )
        return await self.server.run(prepare, self.server, self.served, request, self.caller, look_up=look_up)

    async def _answer(self) -> None:
        try:
            plan = await self._plan(self.history)
            parts: list[Part] = []
            try:
                usage, reason = await self._write(plan, parts)
            except BaseException:
                parts = [part for part in parts if part.function_call is None]  # calls would have been sent now
                raise
            finally:
                if parts:
                    self.history.append(Content(tuple(_joined(parts)), "model"))
            self._speaking = False
            if self.keep is not None and not self._calls:
                await self.keep(self.history)
            if self._calls:
                calls = tuple(part.function_call for part in parts if part.function_call is not None)
                return await self.send(ServerMessage(tool_call=ToolCall(calls), usage_metadata=usage))
            await self.send(ServerMessage(server_content=ServerContent(generation_complete=True)))
            await self.send(
                ServerMessage(server_content=ServerContent(turn_complete=True, turn_complete_reason=reason), usage_metadata=usage)
            )
        except Exception as error:
            await self.fail(error)

    async def _write(self, plan: Plan, parts: list[Part]) -> tuple[LiveUsage | None, TurnCompleteReason]:
        """Send the answer as it comes and note what was sent; its calls are noted only, and wait for their results from then on."""
        usage, reason = None, TurnCompleteReason.TURN_COMPLETE_REASON_UNSPECIFIED
        async with contextlib.aclosing(chunks(self.server, plan)) as arriving:
            async for chunk in arriving:
                usage = _usage(chunk.usage_metadata) if chunk.usage_metadata is not None else usage
                if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason is not None:
                    reason = TurnCompleteReason.RESPONSE_REJECTED
                for candidate in chunk.candidates[:1]:
                    reason = _REASONS.get(candidate.finish_reason, reason) if candidate.finish_reason is not None else reason
                    fresh = [_with_id(part) for part in (candidate.content.parts if candidate.content is not None else ())]
                    await to_the_end(self._tell(fresh, parts, candidate))
        self._calls = {part.function_call.id: part.function_call.name for part in parts if part.function_call is not None}
        return usage, reason

    async def _tell(self, fresh: list[Part], parts: list[Part], candidate: Candidate) -> None:
        shown = tuple(part for part in fresh if part.function_call is None)
        found, read = candidate.grounding_metadata, candidate.url_context_metadata
        if shown or found or read:
            turn = Content(shown, "model") if shown else None
            await self.send(ServerMessage(server_content=ServerContent(turn, found, read)))
        parts += fresh


def _with_id(part: Part) -> Part:
    """A call needs an id, by which its result finds it."""
    call = part.function_call
    return part if call is None or call.id else Part(function_call=FunctionCall(f"call-{new_id(12)}", call.name, call.args))


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Texts in a row as one; thoughts are no part of the conversation."""
    joined: list[Part] = []
    for part in parts:
        if part.thought:
            continue
        if part.text is not None and joined and joined[-1].text is not None:
            joined[-1] = Part(text=joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined


def _usage(usage: UsageMetadata) -> LiveUsage:
    return LiveUsage(
        usage.prompt_token_count,
        usage.cached_content_token_count,
        usage.candidates_token_count,
        usage.tool_use_prompt_token_count,
        usage.thoughts_token_count,
        usage.total_token_count,
        usage.prompt_tokens_details,
        usage.candidates_tokens_details,
        usage.tool_use_prompt_tokens_details,
    )
