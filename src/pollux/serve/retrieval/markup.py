"""The text of a web page that its reader sees: no scripts, styles or hidden elements, entities as characters, a line for each block."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser

_UNSEEN = {"template", "noscript", "head", "svg", "math", "iframe", "object", "select", "textarea", "datalist", "canvas"}
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_BLOCKS = frozenset(
    (
        "address article aside blockquote body caption dd details dialog div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6"
        " header hr li main nav ol p pre section summary table tbody tfoot thead title tr ul"
    ).split()
)
_CELLS = {"td", "th"}
_ENDED_BY = {"p": _BLOCKS - {"title"}, "li": {"li"}, "dt": {"dt", "dd"}, "dd": {"dt", "dd"}, "option": {"option"}}
_HIDING = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
# What html.parser reads again and again if it does not end, and some of it fails on; here each ends with the page at the latest.
_DROPPED = re.compile(
    r"<!--.*?(?:-->|\Z) | <(script|style)\b(?:[^>]*/> | .*?(?:</\1[^>]*>?|\Z)) | <[!?][^>]*>?", re.DOTALL | re.IGNORECASE | re.VERBOSE
)


@dataclass(frozen=True)
class Page:
    text: str
    title: str


def visible(html: str) -> Page:
    """What is seen of a page, however broken its markup is."""
    html = _DROPPED.sub("", html)
    end = html.rfind(">") + 1
    reader = _Reader()
    reader.feed(html[:end] + re.split(r"<[a-zA-Z/]", html[end:], maxsplit=1)[0])  # without a tag that does not end
    reader.close()
    lines = (re.sub(r"[ \t\r\f\v\xa0]+", " ", line).strip() for line in "".join(reader.text).split("\n"))
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip().replace("\0", "")
    return Page(text, " ".join("".join(reader.title).split()))


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text: list[str] = []
        self.title: list[str] = []
        self._open: list[tuple[str, bool]] = []  # elements, and whether they hide what is in them
        self._number: Counter[str] = Counter()  # of them, by name
        self._hidden = self._pre = 0
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._open and tag in _ENDED_BY.get(self._open[-1][0], ()):
            self._close(1)
        if tag == "body":  # whatever the head left open
            self._close(len(self._open))
        self._break(tag)
        if tag in _VOID:
            if tag == "br" and not self._hidden:
                self.text.append("\n")
            return
        given = dict(attrs)
        hides = tag in _UNSEEN or "hidden" in given or bool(_HIDING.search(given.get("style") or ""))
        self._open.append((tag, hides))
        self._number[tag] += 1
        self._hidden += hides
        self._pre += tag == "pre"
        self._in_title = tag == "title" and not self.title

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._number[tag]:
            self._close(next(depth for depth, (name, _) in enumerate(reversed(self._open), 1) if name == tag))
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title.append(data)
        elif not self._hidden:
            self.text.append(data if self._pre else re.sub(r"\s+", " ", data))

    def _close(self, number: int) -> None:
        for _ in range(number):
            name, hides = self._open.pop()
            self._number[name] -= 1
            self._hidden -= hides
            self._pre -= name == "pre"
            self._in_title = False

    def _break(self, tag: str) -> None:
        if self._hidden:
            return
        if tag in _BLOCKS:
            self.text.append("\n\n" if tag in ("p", "h1", "h2", "h3", "h4", "h5", "h6", "table") else "\n")
        elif tag in _CELLS:
            self.text.append(" ")
