"""Function calls as models write them: the JSON of this project, and Gemma 4's `call:name{key:<|"|>text<|"|>,n:1}`."""

from __future__ import annotations

import json
import re
from typing import Any

from pollux.content import FunctionCall, Part, Text

QUOTE = '<|"|>'
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_HEAD = re.compile(r"\s*call:([\w.\-]+)\s*(?={)")
_KEY = re.compile(r"\s*([^\s:{}\[\],]+)\s*:")
_WORDS = {"true": True, "false": False, "null": None}


def read_call(text: str) -> Part:
    """The call that a model wrote, or the text itself if it is none."""
    head = _HEAD.match(text)
    try:
        if head is None:
            data = json.loads(text)
            if isinstance(data, dict) and isinstance(data.get("name"), str) and isinstance(data.get("args"), dict):
                return FunctionCall(data["name"], data["args"], data.get("id"))
            return Text(text)
        args, end = _value(text, head.end())
        return FunctionCall(head[1], args) if isinstance(args, dict) and not text[end:].strip() else Text(text)
    except ValueError:
        return Text(text)


def _value(text: str, at: int) -> tuple[Any, int]:
    """The value that starts at `at`, and where it ends. Raises ValueError if there is none."""
    at = _skip(text, at)
    if text.startswith(QUOTE, at):
        end = text.index(QUOTE, at + len(QUOTE))
        return text[at + len(QUOTE) : end], end + len(QUOTE)
    if text[at : at + 1] == "{":
        return _object(text, at + 1)
    if text[at : at + 1] == "[":
        return _array(text, at + 1)
    for word, value in _WORDS.items():
        if text.startswith(word, at):
            return value, at + len(word)
    number = _NUMBER.match(text, at)
    if number is None:
        raise ValueError(f"no value at character {at}")
    return (float if number[1] or number[2] else int)(number[0]), number.end()


def _object(text: str, at: int) -> tuple[dict[str, Any], int]:
    made: dict[str, Any] = {}
    while text[_skip(text, at) : _skip(text, at) + 1] != "}":
        if text.startswith(QUOTE, _skip(text, at)):  # keys of inner objects may be quoted
            key, at = _value(text, at)
            at = text.index(":", at) + 1
        else:
            found = _KEY.match(text, at)
            if found is None:
                raise ValueError(f"no key at character {at}")
            key, at = found[1], found.end()
        made[key], at = _value(text, at)
        at = _after_comma(text, at, "}")
    return made, _skip(text, at) + 1


def _array(text: str, at: int) -> tuple[list[Any], int]:
    made: list[Any] = []
    while text[_skip(text, at) : _skip(text, at) + 1] != "]":
        value, at = _value(text, at)
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
