"""Which sentences of an answer rest on which passages, as groundingMetadata.

A sentence is supported by a passage only if their words say so: the share of the sentence's words, rarer ones counting more, that stand in
the passage, and the share of its pairs of neighbours that do. A number in the sentence that the passage lacks rules it out. The score
becomes a confidence by a logistic curve that `benchmarks/grounding.py` fits to sentences of texts, changed at random, against the
passages of other texts that are most like them.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pollux.serve.retrieval.chunks import UNSPACED

SLOPE, MIDDLE = 7.5, 0.59  # of the logistic curve, as benchmarks/grounding.py printed them
LEAST = 0.75  # confidence of a support
MOST = 3  # passages for a sentence
_LEAST_WORDS = 3  # of a sentence that says something
_SENTENCE = re.compile(r"""[^\n.!?。！？]+(?:[.!?](?=\w)[^\n.!?。！？]+)*[.!?。！？]*["'”’)\]]*""")
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+(?:[.,][0-9]+)*")
_COMMON = frozenset(
    (
        "a an and are as at be been but by can could did do does for from had has have he her his i if in into is it its may me my no not"
        " of on or our she so some such than that the their them then there these they this to up us was we were what when where which who"
        " will with would you your der die das und ist ein eine le la les et un une el los y de du des en il"
    ).split()
)


@dataclass(frozen=True)
class Support:
    """A piece of an answer, in characters, and the passages that it rests on with their confidences, the best first."""

    start: int
    end: int
    passages: tuple[tuple[int, float], ...]


def supports(answer: str, passages: Sequence[str]) -> list[Support]:
    """Those that there are, in the order of the answer."""
    known = [Words(text) for text in passages]
    found = []
    for start, end in sentences(answer):
        confident = enumerate(map(confidence, scores(answer[start:end], known)))
        best = sorted((pair for pair in confident if pair[1] >= LEAST), key=lambda pair: (-pair[1], pair[0]))[:MOST]
        if best:
            found.append(Support(start, end, tuple(best)))
    return found


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text are, without the white space and the marks of lists around them."""
    found = []
    for match in _SENTENCE.finditer(text):
        piece = match[0]
        start = match.start() + len(piece) - len(piece.lstrip(" \t*-#>"))
        end = match.start() + len(piece.rstrip())
        if start < end:
            found.append((start, end))
    return found


def confidence(score: float) -> float:
    """That a sentence of this score rests on the passage."""
    return 1 / (1 + math.exp(-SLOPE * (score - MIDDLE)))


def scores(sentence: str, passages: Sequence[Words]) -> list[float]:
    """Of each passage, from 0, nothing in common with the sentence, to 1, every word and pair of words."""
    words = _words(sentence)
    telling = Counter(word for word in words if word not in _COMMON)
    if telling.total() < _LEAST_WORDS:
        return [0.0] * len(passages)
    weights = {word: number * _weight(word, passages) for word, number in telling.items()}
    whole, pairs = sum(weights.values()), list(zip(words, words[1:], strict=False))
    exact = {word for word in telling if any(character.isdigit() for character in word)}

    def score(passage: Words) -> float:
        if not exact <= passage.words:
            return 0.0
        single = sum(weight for word, weight in weights.items() if word in passage.words) / whole
        double = sum(pair in passage.pairs for pair in pairs) / len(pairs)
        return (2 * single + double) / 3

    return [score(passage) for passage in passages]


class Words:
    """The words of a passage, and which of them are neighbours."""

    def __init__(self, text: str):
        words = _words(text)
        self.words, self.pairs = set(words), set(zip(words, words[1:], strict=False))


def _words(text: str) -> list[str]:
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return [_stem(word) for word in _WORD.findall(plain)]


def _stem(word: str) -> str:
    """Without the commonest endings of English, so that "owls hunt" is found in "an owl hunts"."""
    for ending in ("ies", "es", "s", "ing", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and word.isascii():
            return word[: -len(ending)] + ("y" if ending == "ies" else "")
    return word


def _weight(word: str, passages: Sequence[Words]) -> float:
    """How telling a word is: less, if most passages have it."""
    have = sum(word in passage.words for passage in passages)
    return 1 + math.log((1 + len(passages)) / (1 + have))


def metadata(answer: str, passages: Sequence[str], chunks: Sequence[Mapping[str, Any]], queries: Sequence[str] = ()) -> dict[str, Any]:
    """groundingMetadata of an answer. chunks: groundingChunks, one for each of the passages."""
    made: dict[str, Any] = {}
    if queries:
        made["webSearchQueries"] = list(queries)
    if chunks:
        made["groundingChunks"] = list(chunks)
    if found := supports(answer, passages):
        made["groundingSupports"] = [_support(answer, one) for one in found]
    return made


def joined(fields: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a candidate that several tools gave: their grounding becomes one."""
    ours, theirs = fields.get("grounding_metadata"), more.get("grounding_metadata")
    merged = {**fields, **more}
    if ours and theirs:
        behind = len(ours.get("groundingChunks", ()))
        moved = [
            {**one, "groundingChunkIndices": [i + behind for i in one["groundingChunkIndices"]]}
            for one in theirs.get("groundingSupports", ())
        ]
        together = {name: [*ours.get(name, ()), *theirs.get(name, ())] for name in ("webSearchQueries", "groundingChunks")}
        together["groundingSupports"] = [*ours.get("groundingSupports", ()), *moved]
        merged["grounding_metadata"] = {name: value for name, value in together.items() if value}
    return merged


def _support(answer: str, support: Support) -> dict[str, Any]:
    start = len(answer[: support.start].encode())
    text = answer[support.start : support.end]
    return {
        "segment": {"startIndex": start, "endIndex": start + len(text.encode()), "text": text},
        "groundingChunkIndices": [i for i, _ in support.passages],
        "confidenceScores": [round(confident, 4) for _, confident in support.passages],
    }
