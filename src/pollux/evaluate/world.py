"""Scores of a model on the world: held-out items, each kind of question beside what guessing gets, drawings by an independent judge.

Every figure is exact match of the normalised answer (of all of it where facts come before a verdict, though guessing has to hit the
verdict alone), except speech (word error rate) and drawing (share of requested objects with the right cell, colour and shape, and beside
it the objects in a drawing that nobody asked for). Captions are also asked of pictures whose pixels are shuffled: a model that looks gets
next to none right.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pollux.content import Content, Image
from pollux.data.world import COLOURS, EVALUATIONS, SHAPES, Item, Verdict, World, judge
from pollux.data.world.checker import Match
from pollux.data.world.scene import CELLS, Scene
from pollux.evaluate.page import Bar, Example
from pollux.evaluate.score import normal, word_error_rate
from pollux.generate.answer import Result
from pollux.generate.model import Model
from pollux.model.params import count

TASKS = ("caption", "vqa", "speech", "clip", "draw", "conversation")  # the default; the rest of EVALUATIONS can be asked for
NAMES = {"clip": "video", "clip_caption": "video_caption"}  # of a task in a report, where it differs
ITEMS = 320  # of each task and split: a multiple of the kinds of question times the two phrasings
CONTROL = 100  # pictures shown with their pixels shuffled
EXAMPLES = 8  # of each task on the page
MARGIN = 8  # tokens beyond what the longest right answer takes
CHANCE_TO_DRAW = 1 / (len(CELLS) * len(COLOURS) * len(SHAPES))  # of one object placed, coloured and shaped at random


@dataclass(frozen=True)
class Outcome:
    """Judged items of one task: for each item whether each thing that was asked of it is right (one, except objects of a drawing), and
    how many objects a drawing has besides."""

    cases: Sequence[Item]
    results: Sequence[Result]
    rights: Sequence[Sequence[bool]]
    unasked: Sequence[int]

    @property
    def share(self) -> float:
        """Share of everything asked that is right."""
        return float(np.mean([right for rights in self.rights for right in rights]))

    def by_kind(self) -> dict[str, Outcome]:
        """The items of each kind of question, in order of appearance."""
        kinds = dict.fromkeys(case.kind for case in self.cases)
        return {kind: self.only([case.kind == kind for case in self.cases]) for kind in kinds}

    def only(self, keep: Sequence[bool]) -> Outcome:
        """The items that are kept, of which there must be one."""
        items = zip(self.cases, self.results, self.rights, self.unasked, strict=True)
        return Outcome(*zip(*itertools.compress(items, keep), strict=True))


@dataclass(frozen=True)
class Evaluation:
    """`report` is plain data for report.json; `bars` (by title) and `examples` are for the page."""

    report: dict[str, Any]
    bars: dict[str, list[Bar]]
    examples: list[Example]


def evaluate(
    model: Model, world: World, tasks: Sequence[str] = TASKS, items: int = ITEMS, guidance: float = 1.0, log: Callable[[str], None] = print
) -> Evaluation:
    """Score a model on `items` held-out items of each task, and captions also on pairs that training showed and on shuffled pictures.

    Answers are greedy; guidance applies to drawings. `log` receives one line a task. Raises ValueError for an unknown task or a
    model that cannot do one.
    """
    unknown = sorted(set(tasks) - set(EVALUATIONS))
    if unknown:
        raise ValueError(f"there is no evaluation task {', '.join(unknown)}; choose from {', '.join(EVALUATIONS)}")
    if items < 1:
        raise ValueError(f"items {items} must be at least 1")
    _require_means(model, tasks)
    chances: dict[str, Any] = {}
    report: dict[str, Any] = {"parameters": count(model.config), "items": items}
    overall: list[Bar] = []
    bars = {"Overall": overall}
    examples: list[Example] = []
    for task in tasks:
        start = time.perf_counter()
        name = NAMES.get(task, task)
        outcome = run(model, task, world.items(task, items), guidance)
        chance = _chance(world, task, outcome)
        chances[name] = float(np.mean([chance[case.kind] for case in outcome.cases]))
        figures = {"draw_correct" if task == "draw" else f"{name}_exact": outcome.share}
        overall.append(Bar(name, outcome.share, chances[name]))
        unseen = [case.unseen_phrasing for case in outcome.cases]
        if any(unseen):
            report[f"{name}_unseen_phrasing"] = outcome.only(unseen).share
        by_kind = outcome.by_kind()
        if len(by_kind) > 1:
            report[f"{name}_by_type"] = {kind: part.share for kind, part in by_kind.items()}
            chances[f"{name}_by_type"] = {kind: chance[kind] for kind in by_kind}
            bars[f"{name} by type"] = [Bar(kind, part.share, chance[kind]) for kind, part in by_kind.items()]
        if task == "draw":
            figures["draw_unasked"] = float(np.mean(outcome.unasked))
        if task == "speech":
            figures["speech_wer"] = _word_error_rate(outcome)
        if task == "caption":
            shuffled = run(model, task, [shuffle_pixels(case) for case in outcome.cases[:CONTROL]]).share
            seen = run(model, task, world.items(task, items, "seen")).share
            figures |= {"caption_exact_seen": seen, "caption_exact_shuffled": shuffled}
            overall += [Bar("caption, seen pairs", seen, chances[name]), Bar("caption, pixels shuffled", shuffled, chances[name])]
        report |= figures
        examples += _examples(name, outcome)
        log(f"{', '.join(f'{key} {value:.3f}' for key, value in figures.items())} ({time.perf_counter() - start:.0f} s)")
    return Evaluation(report | {"chance": chances}, bars, examples)


def run(model: Model, task: str, cases: Sequence[Item], guidance: float = 1.0) -> Outcome:
    """Greedy answers to items of one task, judged; an answer may be a little longer than the longest right one."""
    _require_means(model, (task,))
    assert model.vocabulary is not None
    prompts = [case.contents for case in cases]
    if task != "draw":
        longest = max(len(model.vocabulary.encode_text(case.answer)) for case in cases)
        results = model.generate_many(prompts, temperature=0, max_output_tokens=longest + MARGIN)
        rights = [[normal(r.text) == normal(case.answer)] for case, r in zip(cases, results, strict=True)]
        return Outcome(cases, results, rights, [0] * len(cases))
    assert model.codec is not None
    blank = model.codec.encode(np.zeros((1, *model.codec.size, 3), np.uint8))
    results = model.generate_many(prompts, temperature=0, guidance=guidance, max_output_tokens=blank.size + MARGIN)
    verdicts = [_verdict(case, r) for case, r in zip(cases, results, strict=True)]
    rights = [[match.right for match in verdict.matches] for verdict in verdicts]
    return Outcome(cases, results, rights, [verdict.spurious for verdict in verdicts])


def _require_means(model: Model, tasks: Sequence[str]) -> None:
    """Raises ValueError if the model lacks what one of the tasks needs."""
    if model.vocabulary is None:
        raise ValueError("the model folder has no tokenizer.json, so the model cannot answer")
    if "draw" in tasks and model.codec is None:
        raise ValueError("the model has no image codec, so it cannot draw; leave the task draw out")


def shuffle_pixels(item: Item) -> Item:
    """The same item with the pixels of each picture in a random order, the same at every call: colours stay, shapes and places go."""

    def shuffled(image: Image) -> Image:
        pixels = image.pixels()
        return Image(np.random.default_rng(0).permutation(pixels.reshape(-1, 3)).reshape(pixels.shape))

    contents = (
        Content(content.role, tuple(shuffled(part) if isinstance(part, Image) else part for part in content.parts))
        for content in item.contents
    )
    return dataclasses.replace(item, contents=tuple(contents))


def _verdict(case: Item, result: Result) -> Verdict:
    """On the first drawing; nothing is right if nothing was drawn."""
    assert isinstance(case.truth, Scene)
    if not result.images:
        return Verdict((Match(False, False, False, False),) * len(case.truth.things), 0)
    return judge(np.asarray(result.images[0]), case.truth.things)


def _chance(world: World, task: str, outcome: Outcome) -> dict[str, float]:
    """What guessing without the media gets, by kind of question."""
    return dict.fromkeys((case.kind for case in outcome.cases), CHANCE_TO_DRAW) if task == "draw" else world.chance(task)


def _word_error_rate(outcome: Outcome) -> float:
    return word_error_rate([normal(case.answer) for case in outcome.cases], [normal(result.text) for result in outcome.results])


def _examples(name: str, outcome: Outcome) -> list[Example]:
    examples = []
    for case, result, rights in itertools.islice(zip(outcome.cases, outcome.results, outcome.rights, strict=True), EXAMPLES):
        prompt = tuple(part for content in case.contents for part in content.parts)
        drawn = isinstance(case.truth, Scene) and name == "draw"
        answer = f"{sum(rights)} of {len(rights)} objects right" if drawn else result.text
        examples.append(Example(name, prompt, "" if drawn else case.answer, answer, all(rights), tuple(result.images)))
    return examples
