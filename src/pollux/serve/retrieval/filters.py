"""Filters over the metadata of documents, in the list-filter syntax of Google's APIs (AIP-160):

    author = "Robert Graves" AND (year >= 1930 OR NOT genre : "poetry")

`=`, `!=`, `<`, `<=`, `>`, `>=` compare; `:` asks whether a value is there (`tag : "a"`, `tag : *`) or, in a text, whether it holds it.
A list fits if one of its values does. OR binds more closely than AND, as AIP-160 has it; terms side by side are joined by AND. A
comparison with a field that a document does not have is false, `!=` too.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping

Value = str | float | tuple[str, ...]
Filter = Callable[[Mapping[str, Value]], bool]

MAX_LENGTH = 10_000  # characters of a filter
MAX_DEPTH = 50
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<sign><=|>=|!=|[=<>:()]|-(?![\d.]))|(?P<word>[^\s"'()=<>!:]+))""", re.DOTALL
)
_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def parse(text: str) -> Filter:
    """The filter of an expression; every document passes an empty one. Raises ValueError that says where the expression is wrong."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"the filter has {len(text)} characters, more than the {MAX_LENGTH} allowed")
    if not text.strip():
        return lambda _: True
    parser = _Parser(text)
    found = parser.all_of(0)
    parser.end()
    return found


class _Parser:
    def __init__(self, text: str):
        self.tokens: list[tuple[str, str, int]] = []  # kind, token, place
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                rest = text[position:].lstrip()
                raise ValueError(f"the filter cannot be read from character {len(text) - len(rest) + 1} on: {rest[:40]!r}")
            kind = str(match.lastgroup)
            self.tokens.append((kind, match[kind], match.start(kind) + 1))
            position = match.end()
        self.at = 0

    def end(self) -> None:
        if self.at < len(self.tokens):
            raise self._wrong("the end, AND or OR")

    def all_of(self, depth: int) -> Filter:
        terms = [self.any_of(depth)]
        while self.at < len(self.tokens) and not self._next_is(")"):
            self._takes("AND")
            terms.append(self.any_of(depth))
        return terms[0] if len(terms) == 1 else lambda values: all(term(values) for term in terms)

    def any_of(self, depth: int) -> Filter:
        terms = [self.term(depth)]
        while self._takes("OR"):
            terms.append(self.term(depth))
        return terms[0] if len(terms) == 1 else lambda values: any(term(values) for term in terms)

    def term(self, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise ValueError(f"the filter is nested more than {MAX_DEPTH} deep")
        if self._takes("NOT") or self._takes("-"):
            negated = self.term(depth + 1)
            return lambda values: not negated(values)
        if self._takes("("):
            inner = self.all_of(depth + 1)
            if not self._takes(")"):
                raise self._wrong("a closing parenthesis")
            return inner
        return self._comparison()

    def _comparison(self) -> Filter:
        key = self._operand("the name of a field")[1]
        sign = self.tokens[self.at][1] if self.at < len(self.tokens) else ""
        if sign not in ("=", "!=", ":", *_ORDER):
            raise self._wrong("=, !=, <, <=, >, >= or :")
        self.at += 1
        kind, wanted = self._operand("a value")
        return lambda values: _fits(values.get(key), sign, wanted, anything=kind == "word" and wanted == "*")

    def _operand(self, what: str) -> tuple[str, str]:
        kind, token, _ = self.tokens[self.at] if self.at < len(self.tokens) else ("", "", 0)
        if kind not in ("text", "word") or (kind == "word" and token in ("AND", "OR", "NOT")):
            raise self._wrong(what)
        self.at += 1
        return kind, re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL) if kind == "text" else token

    def _next_is(self, token: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at][0] != "text" and self.tokens[self.at][1] == token

    def _takes(self, token: str) -> bool:
        found = self._next_is(token)
        self.at += found
        return found

    def _wrong(self, wanted: str) -> ValueError:
        if self.at >= len(self.tokens):
            return ValueError(f"the filter ends where {wanted} must come")
        _, token, place = self.tokens[self.at]
        return ValueError(f"the filter has {token[:40]!r} at character {place}, where {wanted} must come")


def _fits(value: Value | None, sign: str, wanted: str, anything: bool) -> bool:
    if value is None:
        return False
    if sign == ":" and anything:
        return True
    if isinstance(value, tuple):
        if sign == "!=":
            return wanted not in value
        return any(_fits(one, "=" if sign == ":" else sign, wanted, False) for one in value)
    if isinstance(value, float):
        try:
            number = float(wanted)
        except ValueError:
            return sign == "!="
        if math.isnan(number):
            return sign == "!="
        return _compared(value, "=" if sign == ":" else sign, number)
    if sign == ":":
        return wanted.casefold() in value.casefold()
    return _compared(value, sign, wanted)


def _compared(value: float | str, sign: str, wanted: float | str) -> bool:
    if sign in ("=", "!="):
        return (value == wanted) == (sign == "=")
    return _ORDER[sign](value, wanted)
