"""JSON as the Gemini API takes it from shells and by hand: strings in single quotes, names without quotes, a comma behind the last value,
a backslash before what needs none.

A body that is JSON already never comes here.
"""

from __future__ import annotations

import json
import re
from typing import Any

MOST = 8 << 20  # characters; longer bodies come from programs, and reading one takes a microsecond a letter at worst

# A string without an end reaches to that of the text, so that one look at each letter is enough.
_RELAXED = re.compile(
    r"""
    "(?P<double>(?:[^"\\]|\\.)*+)(?:"|\Z)
  | '(?P<single>(?:[^'\\]|\\.)*+)(?:'|\Z)
  | (?<!\w)(?P<name>[A-Za-z_]\w*+)(?=\s*+:)
  | (?P<comma>,)(?=\s*+[}\]])
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r'\\(.)|"', re.DOTALL)


def loads(text: str, **options: Any) -> Any:
    """The value; line breaks may stand in strings. options: those of json.loads. Raises ValueError for what is not even this."""
    return json.loads(_RELAXED.sub(_strict, text), strict=False, **options)


def _strict(found: re.Match[str]) -> str:
    if found["comma"]:
        return ""
    if found["name"]:
        return f'"{found["name"]}"'
    inner = found["single"] if found["double"] is None else found["double"]
    ended = len(found[0]) > 1 + len(inner)
    return '"' + _ESCAPED.sub(_letter, inner) + '"' * ended


def _letter(found: re.Match[str]) -> str:
    if found[1] is None:
        return '\\"'
    return found[0] if found[1] in '"\\/bfnrtu' else found[1]
