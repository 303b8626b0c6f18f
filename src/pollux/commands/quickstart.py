"""`pollux quickstart`: from nothing to a judged model on the built-in world, within the minutes that were given."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import tyro

import pollux
from pollux.commands.train import load_recipe
from pollux.compilation import use_compilation_cache
from pollux.data.world import World
from pollux.evaluate import page
from pollux.evaluate.world import ITEMS, TASKS, evaluate
from pollux.generate.model import SAMPLING_FILE
from pollux.generate.sampler import Sampling
from pollux.train import loop, metrics


def quickstart(minutes: float = 10.0, out: Path = Path("runs/quickstart"), items: int = ITEMS, resume: bool = False) -> None:
    """Train a small model that captions, answers, transcribes, follows clips and draws; then judge it on held-out items.

    Example: pollux quickstart --minutes 10

    Args:
        minutes: Time for everything, on the machine that it runs on.
        out: Folder of the run, its model and its report; an earlier run there is moved aside.
        items: Held-out items of each task.
        resume: Continue the run in OUT, which was stopped; give the same minutes.
    """
    start = time.perf_counter()
    if minutes <= 0 or items < 1:
        raise ValueError(f"minutes must be positive and items at least 1, not {minutes:g} and {items}")
    use_compilation_cache()
    if not resume:
        _move_aside(out)
    before = max((line.get("seconds", 0.0) for line in metrics.read(out)), default=0.0) if resume else 0.0
    config = load_recipe("quickstart")(minutes=minutes, work=out / "work")
    model = loop.run(config, out, resume)
    (out / "report.html").rename(out / "training.html")
    # The world has one right answer to every question, so the model takes the most probable token unless told otherwise.
    (model / SAMPLING_FILE).write_text(json.dumps(dataclasses.asdict(Sampling(temperature=0)), indent=1))
    evaluation = evaluate(pollux.load(model), World(config.data.world), TASKS, items, log=lambda line: print(line, flush=True))
    report = {"minutes": (before + time.perf_counter() - start) / 60} | evaluation.report
    page.write(out, report, evaluation.bars, evaluation.examples)
    print(f"{out / 'report.html'} shows what it learned, {out / 'training.html'} how; talk to it: pollux chat {model}")


def _move_aside(out: Path) -> None:
    """Rename a folder that exists to the next free OUT-1, OUT-2, ..."""
    if out.exists():
        number = 1
        while (aside := out.with_name(f"{out.name}-{number}")).exists():
            number += 1
        out.rename(aside)
        print(f"the earlier run is now {aside}")


def main(arguments: list[str]) -> None:
    """Entry of `pollux quickstart`."""
    tyro.cli(quickstart, prog="pollux quickstart", args=arguments)
