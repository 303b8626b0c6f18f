"""Function calls as models write them: the JSON of this project, and Gemma 4's `call:name{key:<|"|>text<|"|>,n:1}`; and how functions are
declared to a model of this project, in a system turn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pollux.content import Content, FunctionCall, Part, Text

QUOTE = '<|"|>'
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_HEAD = re.compile(r"\s*call:([\w.:\-]+)\s*(?={)")
_KEY = re.compile(r"\s*([^\s:{}\[\],]+)\s*:")
_WORDS = {"true": True, "false": False, "null": None}


def declared(tool: Any) -> Mapping[str, Any]:
    """A declaration {"name", "description", "parameters"} without the {"type": "function", "function": ...} that may be around it.

    Raises ValueError for what has no name.
    """
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f'a tool is declared by its "name", "description" and "parameters" (JSON schema), not by {tool!r:.80}')
    return function


def declare(tools: Iterable[Any]) -> Content:
    """The system turn, before all others, by which a model of this project learns of functions: `{"functions":[...]}` with the name,
    description and parameters of each, in this order and without spaces. The turn to train such calls with; prompts have the same.

    tools: {"name", "description", "parameters"}, the latter a JSON schema. Raises ValueError for what has no name.
    """
    functions = [
        {key: function[key] for key in ("name", "description", "parameters") if key in function} for function in map(declared, tools)
    ]
    return Content("system", (Text(json.dumps({"functions": functions}, ensure_ascii=False, separators=(",", ":"))),))


def read_call(text: str, quote: str = QUOTE) -> Part:
    """The call that a model wrote, or the text itself if it is none. quote: what stands around a string in the second form."""
    head = _HEAD.match(text)
    try:
        if head is None:
            data = json.loads(text)
            if isinstance(data, dict) and isinstance(data.get("name"), str) and isinstance(data.get("args"), dict):
                return FunctionCall(data["name"], data["args"], data.get("id"))
            return Text(text)
        args, end = _value(text, head.end(), quote)
        return FunctionCall(head[1], args) if isinstance(args, dict) and not text[end:].strip() else Text(text)
    except ValueError:
        return Text(text)


def _value(text: str, at: int, quote: str) -> tuple[Any, int]:
    """The value that starts at `at`, and where it ends. Raises ValueError if there is none."""
    at = _skip(text, at)
    if text.startswith(quote, at):
        end = text.index(quote, at + len(quote))
        return text[at + len(quote) : end], end + len(quote)
    if text[at : at + 1] == "{":
        return _object(text, at + 1, quote)
    if text[at : at + 1] == "[":
        return _array(text, at + 1, quote)
    for word, value in _WORDS.items():
        if text.startswith(word, at):
            return value, at + len(word)
    number = _NUMBER.match(text, at)
    if number is None:
        raise ValueError(f"no value at character {at}")
    return (float if number[1] or number[2] else int)(number[0]), number.end()


def _object(text: str, at: int, quote: str) -> tuple[dict[str, Any], int]:
    made: dict[str, Any] = {}
    while text[_skip(text, at) : _skip(text, at) + 1] != "}":
        if text.startswith(quote, _skip(text, at)):  # keys of inner objects may be quoted
            key, at = _value(text, at, quote)
            at = text.index(":", at) + 1
        else:
            found = _KEY.match(text, at)
            if found is None:
                raise ValueError(f"no key at character {at}")
            key, at = found[1], found.end()
        made[key], at = _value(text, at, quote)
        at = _after_comma(text, at, "}")
    return made, _skip(text, at) + 1


def _array(text: str, at: int, quote: str) -> tuple[list[Any], int]:
    made: list[Any] = []
    while text[_skip(text, at) : _skip(text, at) + 1] != "]":
        value, at = _value(text, at, quote)
        made.append(value)
        at = _after_comma(text, at, "]")
    return made, _skip(text, at) + 1


def _after_comma(text: str, at: int, closing: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] == ",":
        return at + 1
    if text[at : at + 1] != closing:
        raise ValueError(f"neither a comma nor {closing} at character {at}")
    return at


def _skip(text: str, at: int) -> int:
    """The next character that is no space."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at
