"""`pollux evaluate`: scores of a model folder on held-out items of the world."""

from __future__ import annotations

from pathlib import Path

import tyro

import pollux
from pollux.compilation import use_compilation_cache
from pollux.data.world import World
from pollux.evaluate import page
from pollux.evaluate.world import ITEMS, TASKS
from pollux.evaluate.world import evaluate as evaluate_world
from pollux.model.cache import CacheDtype


def evaluate(
    folder: tyro.conf.Positional[Path],
    /,
    tasks: tuple[str, ...] = TASKS,
    items: int = ITEMS,
    guidance: float = 1.0,
    kv_cache_dtype: CacheDtype | None = None,
    out: Path | None = None,
) -> None:
    """Score a model on pictures, voices, clips and drawing requests of the world that training never shows.

    Example: pollux evaluate runs/quickstart/model --tasks caption vqa --items 320

    Args:
        folder: Model folder.
        tasks: Any of caption, vqa, speech, spoken_question, clip, clip_caption, draw, few_shot, arithmetic, story and conversation.
        items: Items of each task.
        guidance: Strength of classifier-free guidance in drawings; 1 is none.
        kv_cache_dtype: Keep keys and values in 8 bits each, int8 or float8.
        out: Folder for report.json and report.html; FOLDER/evaluation if not given.
    """
    use_compilation_cache()
    model = pollux.load(folder, kv_cache_dtype=kv_cache_dtype)
    evaluation = evaluate_world(model, World(), tasks, items, guidance, lambda line: print(line, flush=True))
    out = out or folder / "evaluation"
    page.write(out, evaluation.report, evaluation.bars, evaluation.examples)
    print(out / "report.html")


def main(arguments: list[str]) -> None:
    """Entry of `pollux evaluate`."""
    tyro.cli(evaluate, prog="pollux evaluate", args=arguments)
