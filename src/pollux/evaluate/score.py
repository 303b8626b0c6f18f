"""How answers are judged: exact strings and the word error rate."""

from __future__ import annotations

from collections.abc import Sequence


def normal(text: str) -> str:
    """Lower case, single spaces, no spaces at the ends: what two answers may differ in."""
    return " ".join(text.lower().split())


def word_errors(reference: str, hypothesis: str) -> int:
    """The least number of words to insert, delete or substitute to turn the hypothesis into the reference (Levenshtein)."""
    heard = hypothesis.split()
    row = list(range(len(heard) + 1))
    for i, word in enumerate(reference.split(), start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Errors of all pairs over words of all references (0 is perfect; may exceed 1). Raises ValueError if no reference has a word."""
    words = sum(len(reference.split()) for reference in references)
    if not words:
        raise ValueError("the word error rate needs at least one reference word")
    return sum(word_errors(r, h) for r, h in zip(references, hypotheses, strict=True)) / words
