"""What may not be asked or answered: a scorer says how likely a text is harmful in each category, and the request's thresholds decide.

Without a scorer nothing is rated and nothing is blocked. `Blocklist` is the scorer that needs no model: words of a file, by category.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pollux.serve.errors import invalid
from pollux.serve.wire.enums import HarmBlockThreshold, HarmCategory, HarmProbability
from pollux.serve.wire.generate import SafetyRating, SafetySetting

CATEGORIES = tuple(category for category in HarmCategory if category >= HarmCategory.HARM_CATEGORY_HARASSMENT)  # of Gemini models
USUAL = HarmBlockThreshold.BLOCK_MEDIUM_AND_ABOVE  # where a request says nothing
_LOWEST_BLOCKED = {
    HarmBlockThreshold.BLOCK_LOW_AND_ABOVE: HarmProbability.LOW,
    HarmBlockThreshold.BLOCK_MEDIUM_AND_ABOVE: HarmProbability.MEDIUM,
    HarmBlockThreshold.BLOCK_ONLY_HIGH: HarmProbability.HIGH,
}


class Scorer(Protocol):
    """May be called from several threads."""

    def score(self, text: str) -> Mapping[HarmCategory, HarmProbability]:
        """How likely a text is harmful, for each category that the scorer knows."""


class Blocklist:
    """HIGH for a text with one of the words, whole and in any case, NEGLIGIBLE for others."""

    def __init__(self, words: Mapping[HarmCategory, Iterable[str]]):
        self._patterns = {category: _pattern(listed) for category, listed in words.items()}

    @classmethod
    def load(cls, path: str | Path) -> Blocklist:
        """From a file such as {"HATE_SPEECH": ["word", "two words"]}. Raises ValueError that names the file."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        known = {category.name.removeprefix("HARM_CATEGORY_"): category for category in CATEGORIES}
        if not isinstance(data, dict) or not all(isinstance(listed, list) for listed in data.values()):
            raise ValueError(f'{path} must be an object of lists of words, such as {{"HATE_SPEECH": ["word"]}}')
        for name, listed in data.items():
            if name.removeprefix("HARM_CATEGORY_") not in known:
                raise ValueError(f"{path} has the category {name!r}, but there are {', '.join(known)}")
            if not all(isinstance(word, str) and word.strip() for word in listed):
                raise ValueError(f"{path}: {name} must hold words that are not empty")
        return cls({known[name.removeprefix("HARM_CATEGORY_")]: listed for name, listed in data.items()})

    def score(self, text: str) -> dict[HarmCategory, HarmProbability]:
        return {
            category: HarmProbability.HIGH if pattern.search(text) else HarmProbability.NEGLIGIBLE
            for category, pattern in self._patterns.items()
        }


@dataclass(frozen=True)
class Verdict:
    ratings: tuple[SafetyRating, ...] = ()
    blocked: bool = False


@dataclass(frozen=True)
class Safety:
    """The scorer of the server with the thresholds of one request."""

    scorer: Scorer | None
    thresholds: Mapping[HarmCategory, HarmBlockThreshold]

    @property
    def active(self) -> bool:
        return self.scorer is not None

    def judge(self, text: str) -> Verdict:
        """What a prompt or an answer so far is taken for; blocks."""
        if self.scorer is None:
            return Verdict()
        ratings = []
        for category, probability in self.scorer.score(text).items():
            threshold = self.thresholds.get(category, USUAL)
            if threshold != HarmBlockThreshold.OFF:
                lowest = _LOWEST_BLOCKED.get(threshold)
                ratings.append(SafetyRating(category, probability, lowest is not None and probability >= lowest))
        return Verdict(tuple(ratings), any(rating.blocked for rating in ratings))


def read_settings(scorer: Scorer | None, settings: Iterable[SafetySetting], where: str = "safetySettings") -> Safety:
    """Raises ApiError 400 for a category that is none of Gemini models or comes twice."""
    thresholds: dict[HarmCategory, HarmBlockThreshold] = {}
    for i, setting in enumerate(settings):
        if setting.category not in CATEGORIES:
            raise invalid(f"{where}[{i}].category must be one of {', '.join(c.name for c in CATEGORIES)}, not {setting.category.name}")
        if setting.category in thresholds:
            raise invalid(f"{where}[{i}].category is {setting.category.name} a second time; give one threshold for each category")
        chosen = setting.threshold
        thresholds[setting.category] = chosen if chosen != HarmBlockThreshold.HARM_BLOCK_THRESHOLD_UNSPECIFIED else USUAL
    return Safety(scorer, thresholds)


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    spelled = [r"\s+".join(map(re.escape, word.split())) for word in words]
    return re.compile(r"(?<!\w)(?:" + "|".join(spelled) + r")(?!\w)" if spelled else r"(?!)", re.IGNORECASE)
