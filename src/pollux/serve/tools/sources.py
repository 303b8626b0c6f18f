"""What tools that look something up before the model writes have in common: the question, and the passages as the model reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from pollux import content
from pollux.serve.tools import grounding
from pollux.serve.tools.tool import Context, Found, Room, Source

MAX_QUERY = 1000  # characters
_LEAST = 8  # tokens of a passage that are worth reading
_OPENING = "Passages that were found, each with its number:\n\n"


def question(turns: Sequence[content.Content]) -> str:
    """What the user said last, as one line; its end, if that is long."""
    last = next((turn for turn in reversed(turns) if turn.role == "user"), None)
    text = " ".join(part.text for part in last.parts if isinstance(part, content.Text)) if last is not None else ""
    return " ".join(text.split())[-MAX_QUERY:]


def context(sources: Iterable[Source], queries: tuple[str, ...], room: Room) -> Context | None:
    """As many of the passages as there is room for, the last one cut off where the room ends; None for none. What is said to be found is
    what the model reads."""
    left = room.tokens - room.count(_OPENING)
    shown: list[Source] = []
    texts: list[str] = []
    for source in sources:
        head = f"[{len(shown) + 1}] {source.title}\n"
        text = _cut(source.text, left - room.count(head) - 2, room)
        if not text:
            break
        shown.append(dataclasses.replace(source, text=text))
        texts.append(f"{head}{text}\n\n")
        left -= room.count(texts[-1])
        if len(text) < len(source.text):
            break
    if not shown:
        return Context("", Found(queries=queries)) if queries else None
    return Context(_OPENING + "".join(texts), Found(tuple(shown), queries))


def web_grounding(text: str, found: Found) -> dict[str, Any]:
    """grounding_metadata of an answer that rests on pages."""
    chunks = [{"web": {"uri": source.uri, "title": source.title}} for source in found.sources]
    return {"grounding_metadata": grounding.metadata(text, [source.text for source in found.sources], chunks, found.queries)}


def _cut(text: str, tokens: int, room: Room) -> str:
    """The longest beginning of a text, in whole words, that has no more tokens; "" if that is hardly anything."""
    if room.count(text) <= tokens:
        return text
    if tokens < _LEAST:
        return ""
    words = text.split(" ")
    low, high = 0, len(words)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if room.count(" ".join(words[:middle])) <= tokens else (low, middle)
    return " ".join(words[:low])
