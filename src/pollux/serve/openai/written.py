"""Answers of generateContent as chat completions, whole or in chunks."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

from pollux.serve.errors import invalid
from pollux.serve.wire.content import Part
from pollux.serve.wire.enums import FinishReason
from pollux.serve.wire.generate import Candidate, GenerateContentResponse, LogprobsResult, TokenLogprob, UsageMetadata

_FINISHES = {FinishReason.MAX_TOKENS: "length", FinishReason.SAFETY: "content_filter", FinishReason.PROHIBITED_CONTENT: "content_filter"}


class Completion:
    """One answer under its id. model: its name as the client asked for it."""

    def __init__(self, model: str, logprobs: bool):
        self._head = {"id": f"chatcmpl-{secrets.token_urlsafe(18)}", "created": int(time.time()), "model": model}
        self._logprobs = logprobs
        self._calls: dict[int, int] = {}  # so far in each choice
        self._usage: UsageMetadata | None = None

    def whole(self, response: GenerateContentResponse) -> dict[str, Any]:
        """The body of an answer. Raises ApiError 400 if the prompt was blocked."""
        check(response)
        choices = [self._choice(candidate) for candidate in response.candidates]
        return self._head | {"object": "chat.completion", "choices": choices, "usage": usage(response.usage_metadata)}

    def chunks(self, response: GenerateContentResponse) -> Iterator[dict[str, Any]]:
        """What a chunk of the answer adds. Raises ApiError 400 if the prompt was blocked."""
        check(response)
        self._usage = response.usage_metadata
        for candidate in response.candidates:
            index = candidate.index or 0
            delta = self._message(candidate, index)
            if index in self._calls:
                delta.pop("role")
            else:
                self._calls[index] = 0
            for call in delta.get("tool_calls", ()):
                call["index"] = self._calls[index]
                self._calls[index] += 1
            if delta or candidate.logprobs_result:
                yield self._chunk([self._framed(index, {"delta": delta}, candidate.logprobs_result, None)])
            if candidate.finish_reason is not None:
                ended = finish(candidate, self._calls[index] > 0)
                yield self._chunk([self._framed(index, {"delta": {}}, None, ended)])

    def last(self) -> dict[str, Any]:
        """The chunk with the usage of all."""
        return self._chunk([]) | {"usage": usage(self._usage)}

    def _choice(self, candidate: Candidate) -> dict[str, Any]:
        index = candidate.index or 0
        said = self._message(candidate, index)
        message = {"content": None if "tool_calls" in said else "", "refusal": None} | said
        return self._framed(index, {"message": message}, candidate.logprobs_result, finish(candidate, "tool_calls" in message))

    def _framed(self, index: int, said: dict[str, Any], result: LogprobsResult | None, ended: str | None) -> dict[str, Any]:
        logprobs = {"content": list(_logprobs(result)), "refusal": None} if self._logprobs and result else None
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": ended}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head | {"object": "chat.completion.chunk", "choices": choices}

    def _message(self, candidate: Candidate, index: int) -> dict[str, Any]:
        parts = candidate.content.parts if candidate.content else ()
        message: dict[str, Any] = {"role": "assistant"}
        if text := "".join(part.text for part in parts if part.text and not part.thought):
            message["content"] = text
        if calls := [_call(part) for part in parts if part.function_call]:
            message["tool_calls"] = calls
        if pictures := [_picture(part) for part in parts if part.inline_data]:
            message["images"] = pictures
        return message


def usage(used: UsageMetadata | None) -> dict[str, Any]:
    """Thoughts count as completion, as there."""
    used = used or UsageMetadata()
    read, thought = (used.prompt_token_count or 0) + (used.tool_use_prompt_token_count or 0), used.thoughts_token_count or 0
    said = (used.candidates_token_count or 0) + thought
    return {
        "prompt_tokens": read,
        "completion_tokens": said,
        "total_tokens": read + said,
        "prompt_tokens_details": {"cached_tokens": used.cached_content_token_count or 0},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def check(response: GenerateContentResponse) -> None:
    """Raises ApiError 400 if the prompt was blocked."""
    if response.prompt_feedback is not None and response.prompt_feedback.block_reason is not None:
        raise invalid(f"the prompt was blocked: {response.prompt_feedback.block_reason.name}", "CONTENT_FILTER")


def finish(candidate: Candidate, called: bool) -> str | None:
    """Why an answer ended; None while it has not. called: functions."""
    if candidate.finish_reason is None:
        return None
    return _FINISHES.get(candidate.finish_reason, "tool_calls" if called else "stop")


def _call(part: Part) -> dict[str, Any]:
    call = part.function_call
    assert call is not None
    arguments = json.dumps(call.args or {}, ensure_ascii=False)
    return {"id": call.id or f"call_{secrets.token_hex(12)}", "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _picture(part: Part) -> dict[str, Any]:
    blob = part.inline_data
    assert blob is not None
    return {"type": "image_url", "image_url": {"url": f"data:{blob.mime_type};base64,{base64.b64encode(blob.data).decode()}"}}


def _logprobs(result: LogprobsResult) -> Iterator[dict[str, Any]]:
    for i, chosen in enumerate(result.chosen_candidates):
        top = result.top_candidates[i].candidates if i < len(result.top_candidates) else ()
        yield _token(chosen) | {"top_logprobs": [_token(one) for one in top]}


def _token(token: TokenLogprob) -> dict[str, Any]:
    text = token.token or ""
    broken = "\ufffd" in text  # a part of a letter, whose bytes are not known here
    return {"token": text, "logprob": token.log_probability, "bytes": None if broken else list(text.encode())}
