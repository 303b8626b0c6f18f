"""How sure a support of groundingMetadata is.

    .venv/bin/python benchmarks/grounding.py FOLDER

Sentences of the texts in a folder are changed at random (words dropped, neighbours swapped, an ending of other words) and scored against
the passage that they are from, and against the passages of other files that a search for them finds, which look as if they said the same.
Prints the logistic curve that tells the two apart best (SLOPE and MIDDLE of serve/tools/grounding.py), and how often a support of
enough confidence is wrong or missing, on files that the curve was not fitted to.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import tyro
from scipy.optimize import minimize

from pollux.serve.retrieval.chunks import Chunk, cut
from pollux.serve.retrieval.index import Index
from pollux.serve.retrieval.reading import Unreadable, read, type_of
from pollux.serve.tools import grounding

HARD = 3  # passages of other files for each sentence
MAX_FILES = 400


def changed(sentence: str, rng: random.Random) -> str:
    """As somebody would say it who has read it: a share of the words is missing, some have moved."""
    words = sentence.split()
    kept = [word for word in words if rng.random() > rng.uniform(0, 0.4)] or words
    for _ in range(len(kept) // 6):
        i = rng.randrange(len(kept) - 1) if len(kept) > 1 else 0
        kept[i : i + 2] = kept[i : i + 2][::-1]
    return " ".join(kept)


def pairs(files: dict[str, list[Chunk]], rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N] and whether the sentence is from the passage [N]."""
    scores, truth = [], []
    with tempfile.TemporaryDirectory() as folder:
        index = Index(Path(folder) / "index.sqlite", None)
        for name, chunks in files.items():
            index.put(name, chunks, [None] * len(chunks), "", name)
        for name, chunks in files.items():
            others = set(files) - {name}
            for chunk in rng.sample(chunks, min(4, len(chunks))):
                whole = [chunk.text[start:end] for start, end in grounding.sentences(chunk.text)]
                whole = [sentence for sentence in whole if len(sentence.split()) >= 5]
                if not whole:
                    continue
                original = rng.choice(whole)
                sentence = changed(original, rng)
                found = [one.chunk.text for one in index.search(sentence, None, HARD, others)]
                found = [text for text in found if " ".join(original.split()) not in " ".join(text.split())]  # else it is no other
                scores += grounding.scores(sentence, [grounding.Words(text) for text in (chunk.text, *found)])
                truth += [True] + [False] * len(found)
        index.close()
    return np.array(scores), np.array(truth)


def fitted(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Slope and middle of the logistic curve that is most likely, both kinds weighing the same."""
    weights = np.where(truth, 0.5 / truth.sum(), 0.5 / (~truth).sum())

    def loss(x: np.ndarray) -> float:
        return float((weights * np.logaddexp(0, np.where(truth, -1, 1) * x[0] * (scores - x[1]))).sum())

    slope, middle = minimize(loss, np.array([10.0, 0.5]), method="Nelder-Mead").x
    return float(slope), float(middle)


def main(folder: tyro.conf.Positional[Path]) -> None:
    """Print the curve and what it gets wrong.

    Args:
        folder: Texts, ten files or more.
    """
    rng = random.Random(0)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and type_of(path))
    rng.shuffle(paths)
    files: dict[str, list[Chunk]] = {}
    for path in paths:
        if len(files) == MAX_FILES:
            break
        try:
            files[str(path)] = cut(read(path, type_of(path)), 120, 20)
        except Unreadable:
            continue
    if len(files) < 10:
        raise SystemExit(f"{folder} must have 10 texts or more, not {len(files)}")
    names = list(files)
    halves = [{name: files[name] for name in names[i::2]} for i in range(2)]
    slope, middle = fitted(*pairs(halves[0], rng))
    print(f"SLOPE, MIDDLE = {slope:.1f}, {middle:.2f}")
    scores, truth = pairs(halves[1], rng)
    grounded = 1 / (1 + np.exp(-slope * (scores - middle))) >= grounding.LEAST
    print(f"{len(names)} files; judged: {truth.sum()} sentences with their passage, {(~truth).sum()} with one of another file")
    print(f"supports that are missing: {1 - grounded[truth].mean():.1%}; that are wrong: {grounded[~truth].mean():.1%}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
