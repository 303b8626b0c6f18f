"""Time to the first tokens behind a context of 4,000 tokens: new, in the cache, and brought back from host memory or from files.

    .venv/bin/python benchmarks/spill.py runs/quickstart/model

One engine a place, each with a cache that has room for one such context. A round takes a new context, asks it twice, lets another take its
room, and asks again; files are first dropped from the system's memory where it allows that. Medians of the rounds, and of their ratios.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import tyro

import pollux
from pollux.generate.engine import Engine
from pollux.generate.model import Model
from pollux.generate.sampler import Sampling
from pollux.generate.settings import EngineSettings
from pollux.tokens.sequence import Sequence

CONTEXT = 4000  # tokens


def context(model: Model, number: int) -> Sequence:
    words, text = f"story {number}: the small red ball is left of the large green box and above a blue star. ", ""
    while len(prompt := model.prompt(text)) < CONTEXT:
        text += words * 20
    return prompt


def first(engine: Engine, prompt: Sequence) -> tuple[float, int]:
    """Milliseconds to the first tokens, and how many tokens of the prompt had been read before."""
    begun = time.perf_counter()
    pieces = engine.stream(prompt, Sampling(temperature=0, max_output_tokens=16))
    arrived = [next(pieces)]
    passed = 1e3 * (time.perf_counter() - begun)
    arrived += pieces
    result = arrived[-1].result
    assert result is not None
    return passed, result.usage.cached


def drop_files(folder: Path) -> None:
    """Have the files read from the disk, not from memory."""
    for file in folder.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(model: Model, rounds: int, place: str, folder: Path) -> None:
    keeping = {"spill": folder} if place == "files" else {"spill_memory": 4 << 30}
    engine = model.engine(EngineSettings(max_rows=16, cache_tokens=CONTEXT + 1024, **keeping))
    first(engine, context(model, -1))
    first(engine, context(model, -2))
    first(engine, context(model, -1))  # all programs are compiled
    new, held, back = [], [], []
    for number in range(rounds):
        prompt = context(model, number)
        new.append(first(engine, prompt)[0])
        held.append(first(engine, prompt)[0])
        first(engine, context(model, 1000 + number))
        engine._spill.flush()
        if place == "files":
            drop_files(folder)
        passed, cached = first(engine, prompt)
        assert cached > len(prompt) - 64, f"only {cached} tokens came back"
        back.append(passed)
    ratio = statistics.median(b / a for a, b in zip(new, back, strict=True))
    line = f"new {statistics.median(new):.0f} ms, in the cache {statistics.median(held):.0f} ms"
    size = sum(file.stat().st_size for file in folder.iterdir()) / max(len(list(folder.iterdir())), 1)
    print(
        f"{line}, from {place} {statistics.median(back):.0f} ms, {ratio:.3f} x new" + (f" ({size / 1024:.0f} KiB a page)" if size else "")
    )
    engine.close()


def main(folder: tyro.conf.Positional[Path], rounds: int = 5) -> None:
    """Print what bringing pages back saves.

    Args:
        folder: Model folder.
        rounds: New contexts for each place.
    """
    model = pollux.load(folder)
    for place in ("memory", "files"):
        with tempfile.TemporaryDirectory() as spilled:
            measure(model, rounds, place, Path(spilled))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
