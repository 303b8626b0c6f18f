"""OpenAI's older /completions: a model goes on with a text that has no turns, which is all that a model without a chat template can do."""

from __future__ import annotations

import dataclasses
import itertools
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pollux.serve.answer import chunks, whole
from pollux.serve.errors import invalid
from pollux.serve.generate import caller_of, unless_left
from pollux.serve.openai import words
from pollux.serve.openai.asked import sampling
from pollux.serve.openai.echo import Echo, echo
from pollux.serve.openai.messages import CompletionRequest
from pollux.serve.openai.stream import find, streamed
from pollux.serve.openai.written import check, finish, usage
from pollux.serve.prepare import Plan, prepare, words_of
from pollux.serve.server import Server
from pollux.serve.wire.body import read
from pollux.serve.wire.enums import ResponseModality
from pollux.serve.wire.generate import (
    Candidate,
    GenerateContentRequest,
    GenerateContentResponse,
    GenerationConfig,
    LogprobsResult,
    UsageMetadata,
)

USUAL_TOKENS = 16  # of an answer, as there


def endpoint(server: Server) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def complete(request: Request) -> Response:
        asked = await read(CompletionRequest, request)
        served, prompts = find(server, asked.model), _prompts(asked)
        _check(asked, len(prompts))
        for number, prompt in enumerate(prompts):
            if isinstance(prompt, tuple):
                words.check(prompt, f"prompt[{number}]", words_of(served))

        def ready(prompt: str | tuple[int, ...]) -> Plan:
            return prepare(server, served, GenerateContentRequest(generation_config=_config(asked)), caller_of(request), prompt)

        plans = [await server.run(ready, prompt) for prompt in prompts]
        writer = _Writer(asked)
        if asked.stream:
            arriving = chunks(server, plans[0])
            first = await unless_left(request, anext(arriving, None))
            return streamed(writer, first, arriving, asked.stream_options.include_usage)
        if asked.echo:
            pairs = zip(plans, prompts, strict=True)
            writer.echoes = [await server.run(echo, plan, prompt, asked.logprobs) for plan, prompt in pairs]
        return JSONResponse(writer.whole([await unless_left(request, whole(server, plan)) for plan in plans]))

    return complete


def _prompts(asked: CompletionRequest) -> list[str | tuple[int, ...]]:
    """Texts, and tuples of ids."""
    given = asked.prompt
    if isinstance(given, str) or _are_ids(given):
        given = [given]
    if not isinstance(given, list) or not 1 <= len(given) <= 64 or not all(isinstance(one, str) or _are_ids(one) for one in given):
        raise invalid("prompt must be a text, a list of ids, or a list of 1 to 64 of these")
    return [one if isinstance(one, str) else tuple(one) for one in given]


def _are_ids(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(i, int) and not isinstance(i, bool) for i in given)


def _check(asked: CompletionRequest, prompts: int) -> None:
    if asked.logit_bias or asked.suffix:
        raise invalid("logit_bias and suffix are not supported")
    if asked.best_of is not None and asked.best_of != (asked.n or 1):
        raise invalid("best_of is not supported; n gives several answers")
    if asked.stream and prompts > 1:
        raise invalid("a stream answers one prompt; send several requests")
    if asked.stream and asked.echo:
        raise invalid("a stream does not repeat its prompt; leave out echo or stream")


def _config(asked: CompletionRequest) -> GenerationConfig:
    return dataclasses.replace(
        sampling(asked),
        max_output_tokens=USUAL_TOKENS if asked.max_tokens is None else asked.max_tokens,
        response_logprobs=asked.logprobs is not None,
        logprobs=asked.logprobs,
        response_modalities=(ResponseModality.TEXT,),
    )


class _Writer:
    """One answer under its id."""

    def __init__(self, asked: CompletionRequest):
        created = {"id": f"cmpl-{secrets.token_urlsafe(18)}", "object": "text_completion", "created": int(time.time())}
        self._head, self._per_prompt = created | {"model": asked.model}, asked.n or 1
        self._offsets: dict[int, int] = {}  # characters so far in each choice
        self._usage: UsageMetadata | None = None
        self.echoes: list[Echo] = []  # of each prompt, if they are to be repeated

    def whole(self, responses: list[GenerateContentResponse]) -> dict[str, Any]:
        """The body of an answer to each prompt. Raises ApiError 400 if one was blocked."""
        choices, used = [], []
        for i, response in enumerate(responses):
            check(response)
            found = [self._choice(candidate, i * self._per_prompt) for candidate in response.candidates]
            choices += [_behind(self.echoes[i], choice) for choice in found] if self.echoes else found
            used.append(usage(response.usage_metadata))
        sums = {name: sum(one[name] for one in used) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
        return self._head | {"choices": choices, "usage": sums}

    def chunks(self, response: GenerateContentResponse) -> Iterator[dict[str, Any]]:
        check(response)
        self._usage = response.usage_metadata
        for candidate in response.candidates:
            yield self._head | {"choices": [self._choice(candidate, 0)]}

    def last(self) -> dict[str, Any]:
        return self._head | {"choices": [], "usage": usage(self._usage)}

    def _choice(self, candidate: Candidate, offset: int) -> dict[str, Any]:
        index = (candidate.index or 0) + offset
        text = "".join(part.text or "" for part in (candidate.content.parts if candidate.content else ()) if not part.thought)
        shown = {"text": text, "index": index, "finish_reason": finish(candidate, called=False)}
        return shown | {"logprobs": self._logprobs(candidate.logprobs_result, index) if candidate.logprobs_result else None}

    def _logprobs(self, result: LogprobsResult, index: int) -> dict[str, Any]:
        tokens = [one.token or "" for one in result.chosen_candidates]
        ends = list(itertools.accumulate(map(len, tokens), initial=self._offsets.get(index, 0)))
        self._offsets[index] = ends[-1]
        top = [{one.token or "": one.log_probability for one in place.candidates} for place in result.top_candidates]
        chosen = [one.log_probability for one in result.chosen_candidates]
        return {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": top, "text_offset": ends[:-1]}


def _behind(prompt: Echo, choice: dict[str, Any]) -> dict[str, Any]:
    """The choice with the prompt before its answer."""
    logprobs = choice["logprobs"]
    if prompt.logprobs is not None and logprobs is not None:
        later = {**logprobs, "text_offset": [len(prompt.text) + offset for offset in logprobs["text_offset"]]}
        logprobs = {name: values + later[name] for name, values in prompt.logprobs.items()}
    return choice | {"text": prompt.text + choice["text"], "logprobs": logprobs}
