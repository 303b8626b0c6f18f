"""What an interaction asks for, as a request of generateContent; settings, tools and formats have other names and shapes there."""

from __future__ import annotations

from typing import Any

from pollux.serve.errors import invalid
from pollux.serve.wire.content import (
    Content,
    FileSearch,
    FunctionCallingConfig,
    FunctionDeclaration,
    GoogleSearch,
    Part,
    Tool,
    ToolConfig,
    UrlContext,
)
from pollux.serve.wire.enums import CallingMode, HarmCategory, ResponseModality, ThinkingLevel
from pollux.serve.wire.generate import GenerateContentRequest, GenerationConfig, SafetySetting, ThinkingConfig
from pollux.serve.wire.interactions import (
    CreateInteraction,
    InteractionConfig,
    InteractionSafety,
    InteractionTool,
    ResponseFormat,
    ToolChoice,
)
from pollux.serve.wire.message import parse

_FORMATS = ("text", "image", "audio", "video")


def generate_request(asked: CreateInteraction, contents: tuple[Content, ...]) -> tuple[GenerateContentRequest, list[str]]:
    """The request, and the paths of fields that have no effect. Raises ApiError 400."""
    ignored: list[str] = []
    tools = tuple(_tool(tool, f"tools[{i}]", ignored) for i, tool in enumerate(asked.tools))
    request = GenerateContentRequest(
        contents=contents,
        system_instruction=Content((Part(text=asked.system_instruction),)) if asked.system_instruction else None,
        tools=tools if any(tool != Tool() for tool in tools) else (),
        tool_config=_tool_config(asked.generation_config.tool_choice, any(tool.google_search for tool in tools)),
        safety_settings=tuple(_safety(setting, f"safety_settings[{i}]") for i, setting in enumerate(asked.safety_settings)),
        generation_config=_config(asked, ignored),
        cached_content=asked.cached_content,
    )
    return request, ignored


def _tool(tool: InteractionTool, where: str, ignored: list[str]) -> Tool:
    """One that does nothing for a type that is not known here, so that those behind it keep their places."""
    if tool.type == "function":
        return Tool((_declaration(tool, where),))
    if tool.type == "code_execution":
        return Tool(code_execution={})
    if tool.type == "google_search":
        if set(tool.search_types) - {"web_search"}:
            ignored.append(f"{where}.search_types")
        return Tool(google_search=GoogleSearch())
    if tool.type == "url_context":
        return Tool(url_context=UrlContext())
    if tool.type == "file_search":
        return Tool(file_search=FileSearch(tool.file_search_store_names, tool.top_k, tool.metadata_filter))
    ignored.append(f"{where} of type {tool.type!r:.40}")
    return Tool()


def _declaration(tool: InteractionTool, where: str) -> FunctionDeclaration:
    if not tool.name:
        raise invalid(f"{where}.name is missing")
    return FunctionDeclaration(tool.name, tool.description, parameters_json_schema=tool.parameters)


def _tool_config(choice: Any, searches: bool) -> ToolConfig | None:
    """A mode by itself, or {"allowed_tools": {"mode", "tools"}}. searches: beside functions, which an interaction need not ask for."""
    if choice is None:
        return ToolConfig(include_server_side_tool_invocations=True) if searches else None
    where, names = "generation_config.tool_choice", tuple[str, ...]()
    if not isinstance(choice, str):
        allowed = parse(ToolChoice, choice, where)[0].allowed_tools
        if allowed is None:
            raise invalid(f"{where} must be a mode or have allowed_tools")
        choice, names, where = allowed.mode or "auto", allowed.tools, f"{where}.allowed_tools.mode"
    modes = [mode.name.lower() for mode in CallingMode if mode]
    if choice.lower() not in modes:
        raise invalid(f"{where} must be one of {', '.join(modes)}, not {choice!r:.60}")
    return ToolConfig(FunctionCallingConfig(CallingMode[choice.upper()], names), searches)


def _safety(setting: InteractionSafety, where: str) -> SafetySetting:
    name = f"HARM_CATEGORY_{setting.type.upper()}"
    if name not in HarmCategory.__members__:
        raise invalid(f"{where}.type must be a category such as hate_speech, not {setting.type!r:.60}")
    return SafetySetting(HarmCategory[name], setting.threshold)


def _config(asked: CreateInteraction, ignored: list[str]) -> GenerationConfig:
    config = asked.generation_config
    mime_type, schema, modalities = asked.response_mime_type, None, list(asked.response_modalities)
    formats = asked.response_format
    for i, item in enumerate(formats if isinstance(formats, list) else [] if formats is None else [formats]):
        if not isinstance(item, dict):
            raise invalid("response_format must be an object or a list of objects")
        if item.get("type") not in _FORMATS:  # a schema by itself
            mime_type, schema = mime_type or "application/json", item
            continue
        found, unknown = parse(ResponseFormat, item, f"response_format[{i}]")
        ignored += unknown
        modalities.append(ResponseModality[found.type.upper()])
        if found.type == "text":
            mime_type, schema = found.mime_type or mime_type, schema if found.schema is None else found.schema
    return GenerationConfig(
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
        stop_sequences=config.stop_sequences,
        max_output_tokens=config.max_output_tokens,
        response_mime_type=mime_type or ("" if schema is None else "application/json"),
        response_json_schema=schema,
        response_modalities=tuple(dict.fromkeys(modalities)),
        thinking_config=_thinking(config),
    )


def _thinking(config: InteractionConfig) -> ThinkingConfig | None:
    if not config.thinking_level and not config.thinking_summaries:
        return None
    level = {"": "THINKING_LEVEL_UNSPECIFIED", "XHIGH": "HIGH"}.get(config.thinking_level.upper(), config.thinking_level.upper())
    if level not in ThinkingLevel.__members__:
        raise invalid(
            f"generation_config.thinking_level must be one of minimal, low, medium, high, xhigh, not {config.thinking_level!r:.60}"
        )
    return ThinkingConfig(config.thinking_summaries == "auto", thinking_level=ThinkingLevel[level])
