"""From a request of the API to a request of the engine: settings, prompt, safety. What remains for the answer stands in the Plan.

All routes that let a model write come through here: generateContent, batches, chat completions, interactions and live sessions.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pollux import content
from pollux.generate.constrained_thoughts import Thoughtful
from pollux.generate.drawing import Drawings
from pollux.generate.ending import Ending
from pollux.generate.model import Model
from pollux.generate.prompts import plain
from pollux.generate.requests import Constraint, Request
from pollux.generate.sampler import Sampling
from pollux.serve import schema
from pollux.serve.content import joined, read_contents, read_system
from pollux.serve.errors import ApiError, invalid
from pollux.serve.safety import Safety, Verdict, read_settings
from pollux.serve.server import Served, Server
from pollux.serve.tools.code_execution import FUNCTION
from pollux.serve.tools.tool import Room
from pollux.serve.tools.toolbox import Toolbox, open_tools
from pollux.serve.wire.enums import MediaResolution, ResponseModality, ThinkingLevel
from pollux.serve.wire.generate import GenerateContentRequest, GenerationConfig
from pollux.tokens import sequence as tokens
from pollux.tokens.config import TokensConfig
from pollux.tokens.interleave import count, encode_prompt
from pollux.tokens.vocabulary import Vocabulary

MAX_TEMPERATURE = 2.0
MAX_LOGPROBS = 20  # alternatives for each token
MAX_STOPS = 16
_MARKERS = 8  # tokens around a turn


@dataclass(frozen=True)
class Caller:
    """Who asks. owner: whose turn in the queue it is and whose files it may read; priority: lower goes first; timeout: seconds."""

    owner: str = ""
    priority: int = 0
    timeout: float | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """A request that is ready for the engine, and what its answer needs to know."""

    served: Served
    request: Request
    safety: Safety
    verdict: Verdict  # on the prompt; if it is blocked, the request must not be submitted
    prompt_tokens: dict[str, int]  # by modality
    modalities: frozenset[ResponseModality]
    thoughts: bool  # are part of the answer
    logprobs: bool
    ignored: tuple[str, ...]  # fields that had no effect
    found_tokens: dict[str, int] = field(default_factory=dict)  # those that tools of the server have put into the prompt besides
    asked: GenerateContentRequest = GenerateContentRequest()
    turns: tuple[content.Content, ...] = ()  # that the prompt was written from
    variables: dict[str, Any] = field(default_factory=dict)  # and what it was written with
    tools: Toolbox = field(default_factory=Toolbox)  # of the server, which the model may call or whose findings it has read


def prepare(
    server: Server,
    served: Served,
    asked: GenerateContentRequest,
    caller: Caller = Caller(),
    running: str | tuple[int, ...] | None = None,
    look_up: bool = True,
) -> Plan:
    """running: text or ids that the model goes on with, in place of contents. look_up: let tools find something for it. Blocks.

    Raises ApiError for what cannot be asked, ValueError for what the model cannot read.
    """
    from pollux.serve.caches import unfold  # which writes the beginnings that it holds through this function

    arrived = time.monotonic()
    asked = unfold(server, served, asked, caller.owner)
    config = asked.generation_config
    if not asked.contents and running is None:
        raise invalid("contents are missing; give at least one content with a part")
    safety = read_settings(server.scorer, asked.safety_settings)
    modalities = _modalities(served.model, config)
    ignored: list[str] = []
    _check_search(asked)
    tools = open_tools(server.tools, asked.tools, caller.owner, ignored)
    if running is not None:
        turns = [content.Content("", (content.Text(running if isinstance(running, str) else words_of(served).decode(running)),))]
    else:
        turns = [
            *(read_system(server, asked.system_instruction, "systemInstruction", caller.owner) if asked.system_instruction else ()),
            *read_contents(server, asked.contents, "contents", caller.owner, runs_code=FUNCTION in tools.by_name),
        ]
    variables = _thinking(served.model, config, ignored)
    if functions := schema.prompt_tools(asked, tools.declarations):
        variables["tools"] = functions
    ignored += ["generationConfig.speechConfig"] if config.speech_config is not None else []
    ignored += schema.not_kept(asked)
    prompt = write_ids(served, running) if isinstance(running, tuple) else write_prompt(served, turns, config, variables)
    prompt_tokens, found_tokens = count(prompt), dict[str, int]()
    verdict = safety.judge(_text(turns)) if safety.active else Verdict()
    limit = served.input_limit
    if look_up and not verdict.blocked and (informed := tools.before(turns, _room(served, limit - len(prompt)))) is not turns:
        turns, prompt = informed, write_prompt(served, informed, config, variables)
        found_tokens = more_tokens(count(prompt), prompt_tokens)
    if len(prompt) >= limit:
        raise invalid(f"The input token count ({len(prompt)}) exceeds the maximum number of tokens allowed ({limit - 1}).")
    sampling = _sampling(server, served.model, config, limit - len(prompt))
    constraint = constraint_of(served.model, asked, modalities, tools, sampling.max_output_tokens)
    excluded = _never_opened(served.model, draws=ResponseModality.IMAGE in modalities, calls=bool(functions))
    timeout = min(server.settings.timeout, caller.timeout or server.settings.timeout)
    candidates = _in_range("candidateCount", config.candidate_count, 1, server.settings.max_candidates, 1)
    if candidates > 1 and tools.declarations:
        raise invalid(f"generationConfig.candidateCount is {candidates} but must be 1 where the server runs tools that the model calls")
    request = Request(
        prompt,
        sampling,
        candidates=candidates,
        top_logprobs=_top_logprobs(config),
        owner=caller.owner,
        priority=caller.priority,
        deadline=arrived + timeout,
        constraint=constraint,
        excluded=excluded,
    )
    return Plan(
        served,
        request,
        safety,
        verdict=verdict,
        prompt_tokens=prompt_tokens,
        modalities=modalities,
        thoughts=config.thinking_config is not None and config.thinking_config.include_thoughts,
        logprobs=config.response_logprobs,
        ignored=tuple(ignored),
        found_tokens=found_tokens,
        asked=asked,
        turns=tuple(turns),
        variables=variables,
        tools=tools,
    )


def write_prompt(
    served: Served, turns: list[content.Content], config: GenerationConfig = GenerationConfig(), variables: dict[str, Any] | None = None
) -> tokens.Sequence:
    """The sequence that the model goes on with; blocks. Raises ValueError for what it cannot read."""
    model, vocabulary = served.model, words_of(served)
    tokens_config = _resolved(model.tokens_config, config.media_resolution)
    if vocabulary.template is not None:
        turns = joined(turns)
    if (media := sum(isinstance(part, content.Image) for turn in turns for part in turn.parts)) >= served.input_limit:
        raise invalid(f"{media} pictures and pages are more than the {served.input_limit - 1} tokens that a prompt may have")
    turns = served.media.turns(turns, tokens_config, model.limits)
    return encode_prompt(turns, vocabulary, tokens_config, model.codec, model.limits, variables)


def write_ids(served: Served, ids: tuple[int, ...]) -> tokens.Sequence:
    """The sequence of running text that comes as ids; what every text begins with is put before them if they do not begin with it."""
    before = beginning(served)
    return plain(ids if ids[: len(before)] == before else (*before, *ids))


def beginning(served: Served) -> tuple[int, ...]:
    """The ids that every running text begins with."""
    return tuple(write_prompt(served, [content.Content("", (content.Text(""),))]).ids.tolist())


def words_of(served: Served) -> Vocabulary:
    """Raises ApiError 400 for a model that reads no words."""
    if served.model.vocabulary is None:
        raise ApiError(400, "FAILED_PRECONDITION", f"models/{served.name} has no tokenizer, so it reads no contents")
    return served.model.vocabulary


def can_think(model: Model) -> bool:
    return model.vocabulary is not None and "<thought>" in model.vocabulary.specials


def _thinking(model: Model, config: GenerationConfig, ignored: list[str]) -> dict[str, Any]:
    """What the chat template is told of thinking."""
    thinking = config.thinking_config
    if thinking is None:
        return {}
    if not can_think(model):
        ignored.append("generationConfig.thinkingConfig")
        return {}
    off = thinking.thinking_budget == 0 or thinking.thinking_level == ThinkingLevel.MINIMAL
    return {"enable_thinking": not off}


def _thinks(model: Model, config: GenerationConfig) -> bool:
    """Whether the model is asked to think."""
    return bool(_thinking(model, config, []).get("enable_thinking"))


def _budget(model: Model, config: GenerationConfig) -> int | None:
    """The most tokens of thoughts; None: as many as the model likes."""
    budget = config.thinking_config.thinking_budget if config.thinking_config is not None and can_think(model) else None
    if budget is not None and budget < -1:
        raise invalid(
            f"generationConfig.thinkingConfig.thinkingBudget is {budget} but must be -1 (as the model likes), 0 (no thoughts)"
            " or a number of tokens"
        )
    return None if budget == -1 else budget


def _resolved(config: TokensConfig, resolution: MediaResolution) -> TokensConfig:
    """With LOW, pictures and frames take a quarter of the tokens that they may take; the others are what the model was made for."""
    if resolution != MediaResolution.MEDIA_RESOLUTION_LOW:
        return config
    image, video = config.image, config.video
    return dataclasses.replace(
        config,
        image=dataclasses.replace(image, max_tokens=max(1, image.max_tokens // 4)),
        video=dataclasses.replace(video, max_tokens=max(1, video.max_tokens // 4)),
    )


def _modalities(model: Model, config: GenerationConfig) -> frozenset[ResponseModality]:
    can = {ResponseModality.TEXT} | ({ResponseModality.IMAGE} if model.codec is not None else set())
    wanted = {m for m in config.response_modalities if m != ResponseModality.MODALITY_UNSPECIFIED}
    if not wanted <= can:
        names = ", ".join(sorted(m.name for m in wanted - can))
        raise invalid(f"Multi-modal output is not supported: this model does not answer with {names}.")
    return frozenset(wanted or can)


def _room(served: Served, left: int) -> Room:
    """For what tools find: half of the tokens that are left, the rest is for the answer."""
    vocabulary = served.model.vocabulary
    assert vocabulary is not None
    return Room(max(0, left // 2 - _MARKERS), lambda text: len(vocabulary.encode_text(text)))


def more_tokens(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """How many more tokens of each modality there are."""
    return {name: number - before.get(name, 0) for name, number in after.items() if number > before.get(name, 0)}


def constraint_of(
    model: Model, asked: GenerateContentRequest, modalities: frozenset[ResponseModality], tools: Toolbox, most: int, may_call: bool = True
) -> Constraint | None:
    """What the answer of at most `most` tokens must keep to: a schema, calls, or a drawing and nothing else; None for nothing.

    may_call: the tools of the server; they stay declared if not.
    """
    assert model.vocabulary is not None
    constraint = schema.constraint(asked, model, tools.declarations, may_call)
    if modalities != {ResponseModality.IMAGE}:
        if constraint is None:
            return None
        words, size = model.vocabulary, model.config.vocab_size
        return Ending(Thoughtful(constraint, words, size) if _thinks(model, asked.generation_config) else constraint, words, size, most)
    if constraint is not None:
        raise invalid("an answer of the responseModalities IMAGE alone holds neither calls nor text with a schema; add TEXT")
    return Drawings(model.vocabulary, model.config.vocab_size)


def _check_search(asked: GenerateContentRequest) -> None:
    """What the original refuses is refused."""
    searching = any(tool.google_search is not None for tool in asked.tools)
    both_allowed = asked.tool_config is not None and asked.tool_config.include_server_side_tool_invocations
    if searching and any(tool.function_declarations for tool in asked.tools) and not both_allowed:
        raise invalid("googleSearch can be combined with functionDeclarations only if toolConfig.includeServerSideToolInvocations is true")


def _never_opened(model: Model, draws: bool, calls: bool) -> tuple[int, ...]:
    """The ids that would begin a drawing or a call where none is wanted."""
    assert model.vocabulary is not None
    unwanted = {name for name, wanted in (("<draw>", draws), ("<call>", calls)) if not wanted}
    return tuple(i for name, i in model.vocabulary.specials.items() if name in unwanted)


def _sampling(server: Server, model: Model, config: GenerationConfig, room: int) -> Sampling:
    """The model's own settings, with those of the request in their place. room: tokens that still fit behind the prompt."""
    if config.temperature is not None and not 0 <= config.temperature <= MAX_TEMPERATURE:
        raise invalid(f"generationConfig.temperature is {config.temperature:g} but must be between 0 and {MAX_TEMPERATURE:g}")
    for name, penalty in (("presencePenalty", config.presence_penalty), ("frequencyPenalty", config.frequency_penalty)):
        if penalty is not None and not -2 <= penalty <= 2:
            raise invalid(f"generationConfig.{name} is {penalty:g} but must be between -2 and 2")
    if len(config.stop_sequences) > MAX_STOPS or not all(config.stop_sequences):
        raise invalid(f"generationConfig.stopSequences must be at most {MAX_STOPS} strings that are not empty")
    most = server.settings.max_output_tokens
    asked = _in_range("maxOutputTokens", config.max_output_tokens, 1, None, most)
    given = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "presence_penalty": config.presence_penalty,
        "frequency_penalty": config.frequency_penalty,
        "stop": config.stop_sequences or None,
        "max_output_tokens": min(asked, most, room),
        "max_thought_tokens": _budget(model, config),
        "seed": secrets.randbits(32) if config.seed is None else config.seed % 2**32,
    }
    return dataclasses.replace(model.sampling, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _top_logprobs(config: GenerationConfig) -> int:
    if config.logprobs is not None and not config.response_logprobs:
        raise invalid("generationConfig.logprobs may only be given if response_logprobs is true")
    return _in_range("logprobs", config.logprobs, 0, MAX_LOGPROBS, 0)


def _in_range(name: str, value: int | None, low: int, high: int | None, usual: int) -> int:
    if value is None:
        return usual
    if value < low or (high is not None and value > high):
        raise invalid(f"generationConfig.{name} is {value} but must be " + (f"between {low} and {high}" if high else f"at least {low}"))
    return value


def _text(turns: list[content.Content]) -> str:
    return "\n".join(part.text for turn in turns for part in turn.parts if isinstance(part, content.Text))
