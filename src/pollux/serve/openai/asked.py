"""A chat completion that was asked for, as the request of generateContent that means the same; prepare.py goes on from there."""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.parse
from typing import Any

from pollux.serve.errors import invalid
from pollux.serve.openai.messages import ChatRequest, ContentPart, InputAudio, InputFile, Message, ResponseFormat, Sampled, ToolCall
from pollux.serve.wire import content
from pollux.serve.wire.content import Blob, Content, FileData, FunctionDeclaration, Part
from pollux.serve.wire.enums import CallingMode, MediaResolution, ResponseModality, ThinkingLevel
from pollux.serve.wire.generate import GenerateContentRequest, GenerationConfig, ThinkingConfig
from pollux.serve.wire.message import parse

_DATA_URL = re.compile(r"data:([^,;]*)([^,]*),(.*)", re.DOTALL)
_SOUNDS = {"mp3": "audio/mpeg", "wav": "audio/wav"}
_EFFORTS = {
    "none": ThinkingConfig(thinking_budget=0),
    "minimal": ThinkingConfig(thinking_level=ThinkingLevel.MINIMAL),
    "low": ThinkingConfig(thinking_level=ThinkingLevel.LOW),
    "medium": ThinkingConfig(thinking_level=ThinkingLevel.MEDIUM),
    "high": ThinkingConfig(thinking_level=ThinkingLevel.HIGH),
    "xhigh": ThinkingConfig(thinking_level=ThinkingLevel.HIGH),
}
_MODES = {"none": CallingMode.NONE, "auto": CallingMode.AUTO, "required": CallingMode.ANY}


def to_gemini(asked: ChatRequest, ignored: list[str]) -> GenerateContentRequest:
    """ignored: where fields are noted that have no effect. Raises ApiError 400 for what cannot be asked here."""
    if asked.functions is not None or asked.function_call is not None:
        raise invalid("functions and function_call are not supported; use tools and tool_choice, which took their place")
    if asked.logit_bias:
        raise invalid("logit_bias is not supported")
    if not asked.messages:
        raise invalid("messages are missing; give at least one")
    system: list[Part] = []
    contents: list[Content] = []
    names: dict[str, str] = {}  # of called functions by the id of their call
    low: list[bool] = []
    for i, message in enumerate(asked.messages):
        where = f"messages[{i}]"
        parts = _parts(message, where, low, ignored)
        if message.role in ("system", "developer"):
            system += parts
        elif message.role == "user":
            contents.append(Content(parts, "user"))
        elif message.role == "assistant":
            names |= {call.id: call.function.name for call in message.tool_calls if call.function}
            calls = tuple(_call(call, f"{where}.tool_calls[{j}]") for j, call in enumerate(message.tool_calls))
            contents.append(Content((*parts, *calls), "model"))
        elif message.role == "tool":
            answer = _answer(message, parts, names, where)
            if i and asked.messages[i - 1].role == "tool":  # answers to one turn's calls stand together
                contents[-1] = Content((*contents[-1].parts, answer), "user")
            else:
                contents.append(Content((answer,), "user"))
        else:
            raise invalid(f'{where}.role must be "system", "developer", "user", "assistant" or "tool", not {message.role!r:.40}')
    declarations, mode = _tools(asked)
    return GenerateContentRequest(
        contents=tuple(one for one in contents if one.parts),
        system_instruction=Content(tuple(system)) if system else None,
        tools=(content.Tool(declarations),) if declarations else (),
        tool_config=content.ToolConfig(mode) if mode else None,
        generation_config=_config(asked, resolution=MediaResolution.MEDIA_RESOLUTION_LOW if low and all(low) else None),
    )


def _parts(message: Message, where: str, low: list[bool], ignored: list[str]) -> tuple[Part, ...]:
    """What a message says. low: takes for every picture whether it is to be seen in few tokens."""
    if message.content is None or isinstance(message.content, str):
        return (Part(text=message.content),) if message.content else ()
    if not isinstance(message.content, list):
        raise invalid(f"{where}.content must be a string or a list of parts")
    made = []
    for j, data in enumerate(message.content):
        place = f"{where}.content[{j}]"
        part, unknown = parse(ContentPart, data, place)
        ignored += unknown
        made.append(_part(part, place))
        if part.image_url is not None:
            low.append(part.image_url.detail == "low")
    return tuple(made)


def _part(part: ContentPart, where: str) -> Part:
    if part.type == "text":
        return Part(text=part.text or "")
    if part.type == "refusal":
        return Part(text=part.refusal or "")
    if part.type == "image_url" and part.image_url:
        return _from_url(part.image_url.url, f"{where}.image_url.url")
    if part.type == "video_url" and part.video_url:
        return _from_url(part.video_url.url, f"{where}.video_url.url")
    if part.type == "input_audio" and part.input_audio:
        return _sound(part.input_audio, f"{where}.input_audio")
    if part.type == "file" and part.file:
        return _file(part.file, f"{where}.file")
    raise invalid(f"{where} must be a text, image_url, video_url, input_audio or file, with the field of that name, not {part.type!r:.40}")


def _from_url(url: str, where: str) -> Part:
    match = _DATA_URL.match(url)
    if match is None:
        return Part(file_data=FileData(url))
    mime_type, parameters, data = match.groups()
    if not parameters.endswith(";base64"):
        return Part(inline_data=Blob(mime_type, urllib.parse.unquote_to_bytes(data)))
    return Part(inline_data=parse(Blob, {"mimeType": mime_type, "data": data}, where)[0])


def _sound(sound: InputAudio, where: str) -> Part:
    if sound.format not in _SOUNDS:
        raise invalid(f"{where}.format must be {' or '.join(_SOUNDS)}, not {sound.format!r:.40}")
    return Part(inline_data=Blob(_SOUNDS[sound.format], sound.data))


def _file(file: InputFile, where: str) -> Part:
    if file.file_id:
        return Part(file_data=FileData(f"files/{file.file_id.removeprefix('files/')}"))
    if _DATA_URL.match(file.file_data):
        return _from_url(file.file_data, f"{where}.file_data")
    raise invalid(f"{where} must have a file_id, or file_data as a data URL")


def _call(call: ToolCall, where: str) -> Part:
    if call.function is None or not call.function.name:
        raise invalid(f"{where} must be a call of a function with a name")
    try:
        args = json.loads(call.function.arguments or "{}")
    except ValueError as error:
        raise invalid(f"{where}.function.arguments is not JSON: {error}") from error
    if not isinstance(args, dict):
        raise invalid(f"{where}.function.arguments must be a JSON object")
    return Part(function_call=content.FunctionCall(call.id, call.function.name, args))


def _answer(message: Message, parts: tuple[Part, ...], names: dict[str, str], where: str) -> Part:
    """What a function answered: a JSON object as it is, anything else as {"output": text}."""
    if message.tool_call_id not in names:
        raise invalid(f"{where}.tool_call_id is {message.tool_call_id!r:.60}, which no assistant's message before it has called")
    text = "".join(part.text or "" for part in parts)
    try:
        response = json.loads(text)
    except ValueError:
        response = None
    if not isinstance(response, dict):
        response = {"output": text}
    return Part(function_response=content.FunctionResponse(message.tool_call_id, names[message.tool_call_id], response))


def _tools(asked: ChatRequest) -> tuple[tuple[FunctionDeclaration, ...], content.FunctionCallingConfig | None]:
    """The functions that may be called, and whether one must be."""
    declared = []
    for i, tool in enumerate(asked.tools):
        if tool.type != "function" or tool.function is None or not tool.function.name:
            raise invalid(f"tools[{i}] must be a function with a name; other tools are not supported")
        function = tool.function
        declared.append(FunctionDeclaration(function.name, function.description, parameters_json_schema=function.parameters))
    choice = asked.tool_choice
    if choice is None:
        return tuple(declared), None
    if isinstance(choice, str) and choice in _MODES:
        mode, allowed = _MODES[choice], None
    else:
        mode, allowed = _chosen(choice)
    if mode == CallingMode.ANY and not declared:
        raise invalid("tool_choice demands a call, but tools declares no function")
    if allowed is not None:
        unknown = [name for name in allowed if name not in {one.name for one in declared}]
        if unknown:
            raise invalid(f"tool_choice names {unknown[0]!r:.60}, which tools does not declare")
        declared = [one for one in declared if one.name in allowed]
    return tuple(declared), content.FunctionCallingConfig(mode) if declared else None


def _chosen(choice: Any) -> tuple[CallingMode, list[str]]:
    """The mode and the names of a tool_choice that is an object."""
    try:
        if choice["type"] == "function":
            return CallingMode.ANY, [str(choice["function"]["name"])]
        if choice["type"] == "allowed_tools":
            allowed = choice["allowed_tools"]
            return _MODES[allowed["mode"]], [str(tool["function"]["name"]) for tool in allowed["tools"]]
    except (KeyError, TypeError):
        pass  # it is none of these forms, as the message says
    raise invalid('tool_choice must be "none", "auto", "required", a function or allowed_tools')


def _config(asked: ChatRequest, resolution: MediaResolution | None) -> GenerationConfig:
    if asked.reasoning_effort and asked.reasoning_effort not in _EFFORTS:
        raise invalid(f"reasoning_effort must be one of {', '.join(_EFFORTS)}, not {asked.reasoning_effort!r:.40}")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise invalid("top_logprobs may only be given if logprobs is true")
    mime_type, schema = _format(asked.response_format)
    return dataclasses.replace(
        sampling(asked),
        max_output_tokens=asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens,
        response_logprobs=asked.logprobs,
        logprobs=asked.top_logprobs,
        response_mime_type=mime_type,
        response_json_schema=schema,
        response_modalities=_modalities(asked.modalities),
        media_resolution=resolution or MediaResolution.MEDIA_RESOLUTION_UNSPECIFIED,
        thinking_config=_EFFORTS.get(asked.reasoning_effort),
    )


def sampling(asked: Sampled) -> GenerationConfig:
    """How the tokens of either kind of completion are chosen, and what ends it."""
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
        raise invalid("stop must be a string or a list of strings")
    return GenerationConfig(
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        candidate_count=asked.n,
        stop_sequences=tuple(stops),
        seed=asked.seed,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
    )


def _format(wanted: ResponseFormat | None) -> tuple[str, Any]:
    """The mime type and JSON schema of the answer."""
    if wanted is None or wanted.type == "text":
        return "", None
    if wanted.type == "json_object":
        return "application/json", {"type": "object"}
    if wanted.type == "json_schema" and wanted.json_schema is not None and wanted.json_schema.schema is not None:
        return "application/json", wanted.json_schema.schema
    raise invalid(
        'response_format must be {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": ...}}'
    )


def _modalities(names: tuple[str, ...]) -> tuple[ResponseModality, ...]:
    known = {"text": ResponseModality.TEXT, "image": ResponseModality.IMAGE}
    if not set(names) <= set(known):
        raise invalid(f"modalities may be {', '.join(known)}, not {', '.join(sorted(set(names) - set(known)))[:80]}")
    return tuple(known[name] for name in names) or (ResponseModality.TEXT,)
