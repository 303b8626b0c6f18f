"""How values are spelled in grammars: as JSON, or as Gemma 4 writes the arguments of its calls.

A form gives schema_grammar.py the symbols of llguidance's Lark for punctuation, strings and keys; numbers and words are the same in both.
All strings end at the same quotation mark, whichever rule they are read by, because llguidance takes the longest match.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from llguidance import regex_to_lark

FORMATS = {  # of strings; others are remarks, as JSON Schema has it
    "date": (
        r"[1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
        r"|([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29"
    ),
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+\-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
FORMATS["date-time"] = rf"({FORMATS['date']})T({FORMATS['time']})"
MAX_PATTERN = 5000  # characters
WHITESPACE = r"( |\n[ \t]{0,32})?"  # between values: nothing, a space, or a new line and its indentation, so that it ends

_HEX = "[0-9a-fA-F]"
_SURROGATES = rf"[dD][89abAB]{_HEX}{{2}}\\u[dD][c-fC-F]{_HEX}{{2}}"
_CHARACTER = (  # of a JSON string; half a surrogate pair is none
    r'([^"\\\x00-\x1f\x7f]|\\["\\\/bfnrt]'
    rf"|\\u([0-9abcefABCEF]{_HEX}{{3}}|[dD][0-7]{_HEX}{{2}}|{_SURROGATES}))"
)
_PLAIN_CHARACTER = r'([^"\\\x00-\x1f\x7f]|\\["\\bfnrt])'  # spelled in one way only, so that no key comes twice
_BARE_KEY = r"[^\s\x00-\x1f:{}\[\],<\"|]+"

Terminal = Callable[[str], str]  # the name of a terminal with this definition


class Form(Protocol):
    """Symbols are lists, one after the other; `terminal` names a terminal for a definition."""

    open_object: str
    close_object: str
    open_array: str
    close_array: str
    comma: str

    def key(self, name: str) -> list[str]:
        """A key and what follows it up to the value."""

    def other_key(self, names: Iterable[str], terminal: Terminal) -> list[str]:
        """Any key but these."""

    def string(self, facets: dict[str, Any], terminal: Terminal) -> list[str]:
        """Strings with minLength, maxLength, pattern and format."""

    def choice(self, texts: Sequence[str], terminal: Terminal) -> list[str]:
        """One of some strings."""

    def ordered(self, names: Iterable[str]) -> list[str]:
        """The keys of an object in the order in which they are written."""


class Json:
    """JSON; spaced: whitespace may stand between values."""

    def __init__(self, spaced: bool):
        space = WHITESPACE if spaced else ""
        self.open_object, self.close_object = rf"/\{{{space}/", rf"/{space}\}}/"
        self.open_array, self.close_array = rf"/\[{space}/", rf"/{space}\]/"
        self.comma, self._colon = f"/,{space}/", "/: ?/" if spaced else '":"'

    def key(self, name: str) -> list[str]:
        return [literal(_quoted(name)), self._colon]

    def other_key(self, names: Iterable[str], terminal: Terminal) -> list[str]:
        taken = " | ".join(literal(_quoted(name)) for name in names)
        return [terminal(f'/"{_PLAIN_CHARACTER}*"/' + (f" & ~({taken})" if taken else "")), self._colon]

    def string(self, facets: dict[str, Any], terminal: Terminal) -> list[str]:
        least, most = facets.get("minLength", 0), facets.get("maxLength", "")
        if "pattern" in facets:  # llguidance's own compiler knows which escapes stand for which characters
            known = {name: value for name, value in facets.items() if name != "format" or value in FORMATS}
            options = {"whitespace_flexible": False, "json_allowed_escapes": 'nrbtf\\"'}
            return ["%json " + json.dumps({"type": "string", **known, "x-guidance": options})]
        length = f'/"{_CHARACTER}{{{least},{most}}}"/' if least or most != "" else f'/"{_CHARACTER}*"/'
        made = FORMATS.get(facets.get("format", ""))
        return [terminal(f'/"({made})"/ & {length}' if made else length)]

    def choice(self, texts: Sequence[str], terminal: Terminal) -> list[str]:
        return [terminal(" | ".join(literal(_quoted(text)) for text in texts))]

    def ordered(self, names: Iterable[str]) -> list[str]:
        return list(names)


class Gemma:
    """The arguments of Gemma 4's calls: no whitespace, bare keys in alphabetical order, strings between two of the token `<|"|>`.

    quote: the id of that token.
    """

    open_object, close_object, open_array, close_array, comma = '"{"', '"}"', '"["', '"]"', '","'

    def __init__(self, quote: int):
        self._mark = f"<[{quote}]>"

    def key(self, name: str) -> list[str]:
        if re.fullmatch(_BARE_KEY, name):
            return [literal(name + ":")]
        return [self._mark, *([literal(name)] if name else []), self._mark, '":"']

    def other_key(self, names: Iterable[str], terminal: Terminal) -> list[str]:
        taken = " | ".join(literal(name + ":") for name in names)
        return [terminal(f"/{_BARE_KEY}:/" + (f" & ~({taken})" if taken else ""))]

    def string(self, facets: dict[str, Any], terminal: Terminal) -> list[str]:
        least, most = facets.get("minLength", 0), facets.get("maxLength", "")
        parts = []
        if made := FORMATS.get(facets.get("format", "")):
            parts.append(f"/{made}/")
        if "pattern" in facets:
            parts.append(f"/{searched(facets['pattern'])}/")
        if least or most != "" or not parts:
            parts.append(f"/(?s:.){{{max(least, 1)},{most}}}/")
        text = terminal(" & ".join(parts)) if most != 0 else ""
        empty = least == 0 and not made and ("pattern" not in facets or re.search(facets["pattern"], "") is not None)
        return [self._mark, *([f"{text}?" if empty else text] if text else []), self._mark]

    def choice(self, texts: Sequence[str], terminal: Terminal) -> list[str]:
        whole = [literal(text) for text in texts if text]
        one = terminal(" | ".join(whole)) if whole else ""
        return [self._mark, *([f"{one}?" if "" in texts else one] if one else []), self._mark]

    def ordered(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=str.lower)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def literal(text: str) -> str:
    """The symbol of exactly this text. Raises ValueError if it is not valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r} is not valid Unicode: half of a surrogate pair stands alone") from error
    return json.dumps(text).replace("\x7f", r"\u007f")


def expression(pattern: str) -> str:
    """A regular expression between the slashes of a terminal, with the character classes of JSON Schema. Raises ValueError for a book."""
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a pattern has up to {MAX_PATTERN:,} characters, not {len(pattern):,}")
    return "(?:" + regex_to_lark(pattern, "dw").replace("\n", r"\n") + ")"


def searched(pattern: str) -> str:
    """What contains a match: without anchors anything may stand around it. Each branch of the pattern may have its own."""
    return "|".join(
        ("" if branch.startswith("^") else "(?s:.*)") + expression(branch) + ("" if _anchored(branch) else "(?s:.*)")
        for branch in _branches(pattern)
    )


def _anchored(branch: str) -> bool:
    return branch.endswith("$") and (len(branch) - len(branch[:-1].rstrip("\\"))) % 2 == 1


def _branches(pattern: str) -> list[str]:
    """The alternatives of a pattern that stand in no group."""
    branches, depth, in_class = [""], 0, False
    for piece in re.findall(r"\\.|.", pattern, re.DOTALL):
        depth += (piece == "(") - (piece == ")") if not in_class else 0
        in_class = piece == "[" or in_class and piece != "]"
        if piece == "|" and depth == 0 and not in_class:
            branches.append("")
        else:
            branches[-1] += piece
    return branches
