"""The tools of the server that a request asks for: which they are, which of them a call is for, and what they have found."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pollux import content
from pollux.serve.errors import invalid
from pollux.serve.tools.grounding import joined
from pollux.serve.tools.tool import Found, Room, ServerTool
from pollux.serve.wire.content import Tool
from pollux.tokens.vocabulary import Vocabulary


@dataclass(frozen=True)
class Kind:
    """A tool of the API. field: in wire.Tool; name: on the wire; enable: how an operator does that.

    optional: where it is not enabled, an answer without it is still an answer, so it is ignored and the client told; else it is refused.
    called: the model calls it, so it has to be one that writes calls.
    """

    field: str
    name: str
    enable: str
    optional: bool = False
    called: bool = False


KINDS = (
    Kind("code_execution", "codeExecution", "pollux serve --code-execution", called=True),
    Kind("google_search", "googleSearch", "pollux serve --search FOLDER", optional=True),
    Kind("google_search_retrieval", "googleSearchRetrieval", "pollux serve --search FOLDER", optional=True),
    Kind("url_context", "urlContext", "pollux serve --fetch", optional=True),
    Kind("file_search", "fileSearch", "a data folder"),
)


class Toolbox:
    """The tools of one request, and what each has found."""

    def __init__(self, tools: Sequence[ServerTool] = ()):
        self.tools = tuple(tools)
        self._found = {id(tool): Found() for tool in self.tools}

    @functools.cached_property
    def declarations(self) -> list[dict[str, Any]]:
        """All functions that the model may call on the server."""
        return [dict(function) for tool in self.tools for function in tool.declarations]

    @functools.cached_property
    def by_name(self) -> dict[str, ServerTool]:
        return {function["name"]: tool for tool in self.tools for function in tool.declarations}

    def note(self, tool: ServerTool, found: Found) -> None:
        self._found[id(tool)] += found

    def before(self, turns: list[content.Content], room: Room) -> list[content.Content]:
        """The turns with what the tools find for them before the last of the user. room: for all of them. Blocks."""
        texts = []
        for tool in self.tools:
            context = tool.before(turns, room)
            if context is None:
                continue
            self.note(tool, context.found)
            if context.text:
                texts.append(content.Text(context.text))
                room = dataclasses.replace(room, tokens=room.tokens - room.count(context.text))
        if not texts:
            return turns
        at = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=len(turns))
        return [*turns[:at], content.Content("user", tuple(texts)), *turns[at:]]

    def after(self, text: str) -> dict[str, Any]:
        """Fields of the candidate about what was found. Blocks."""
        fields: dict[str, Any] = {}
        for tool in self.tools:
            fields = joined(fields, tool.after(text, self._found[id(tool)]))
        return fields


def supported(enabled: Mapping[str, Any], vocabulary: Vocabulary | None) -> tuple[str, ...]:
    """The names of the enabled tools that a model of this vocabulary can be asked with."""
    calls = vocabulary is not None and "<call>" in vocabulary.specials
    return tuple(kind.name for kind in KINDS if kind.field in enabled and vocabulary is not None and (calls or not kind.called))


def open_tools(enabled: Mapping[str, Any], asked: Sequence[Tool], owner: str, ignored: list[str]) -> Toolbox:
    """The tools that a request asks for; blocks. enabled: by their fields in wire.Tool. ignored: takes what the client is told to be so.

    Raises ApiError 400 for a tool that is not enabled, or is asked for twice.
    """
    opened: dict[str, ServerTool] = {}
    for i, tool in enumerate(asked):
        for kind in KINDS:
            value = getattr(tool, kind.field)
            if value is None:
                continue
            if kind.field in opened:
                raise invalid(f"tools[{i}].{kind.name} is asked for a second time")
            if kind.field in enabled:
                opened[kind.field] = enabled[kind.field].open(value, owner)
            elif kind.optional:
                ignored.append(f"tools[{i}].{kind.name}")
            else:
                raise invalid(f"tools[{i}].{kind.name} is not enabled on this server; whoever runs it enables it with {kind.enable}")
    return Toolbox(tuple(opened.values()))
