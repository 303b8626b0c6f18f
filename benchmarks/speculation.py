"""What drafts are worth at temperature 0, one prompt at a time: acceptance, tokens a round, and decoding time against plain decoding.

    .venv/bin/python benchmarks/speculation.py --model runs/quickstart/model [--draft FOLDER]

Held-out items of the built-in world; only the decoding is timed, after the prompt has been read. Plain decoding, look-up and the draft
model take turns on each prompt and must write the same ids; their sums over the prompts of a task are compared, and the median of
the rounds counts. Then the same for the same model made deeper by layers whose output weights are zero: it writes the same at the cost of
a larger one. Without a folder only the last part runs: what a step and a round cost in a larger target with random weights, which accepts
next to no draft, and from which share of accepted drafts on the round would pay.
Shapes: G drafted tokens.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro

import pollux
from pollux.commands.memory import keep_freed_memory
from pollux.compilation import use_compilation_cache
from pollux.data.world import World, WorldConfig
from pollux.generate.answer import Result
from pollux.generate.drafter import Drafter, DraftModel, LookUp
from pollux.generate.engine import Engine
from pollux.generate.model import Model
from pollux.generate.prompts import plain
from pollux.generate.sampler import Sampling
from pollux.model.family import mini, tiny
from pollux.model.params import count, init
from pollux.tokens.sequence import Sequence
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary

Engines = dict[str, Engine]


@dataclass(frozen=True)
class Settings:
    model: Path | None = None  # a trained model folder
    draft: Path | None = None  # a smaller one with the same vocabulary
    tasks: tuple[str, ...] = ("draw", "caption", "conversation")
    items: int = 8  # prompts of each task
    rounds: int = 5
    lengths: tuple[int, ...] = (2, 4)  # G of look-up and of the draft model
    layers: int = 32  # of the deeper model
    costs: bool = True  # measure the costs in a larger target with random weights too


def decoded(engine: Engine, prompt: Sequence, sampling: Sampling) -> tuple[float, Result]:
    """Seconds of an answer to a prompt that is in the cache already, and the answer."""
    engine.generate([prompt], [dataclasses.replace(sampling, max_output_tokens=1)])
    start = time.perf_counter()
    (result,) = engine.generate([prompt], [sampling])
    return time.perf_counter() - start, result


def compare(engines: Engines, prompts: list[Sequence], sampling: Sampling, rounds: int) -> dict[str, tuple[float, list[Result]]]:
    """Median over the rounds of the seconds for all prompts, and the answers, which must be those of the first engine."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    results: dict[str, list[Result]] = {}
    for number in range(rounds + 1):  # the first one compiles
        total = dict.fromkeys(engines, 0.0)
        results = {name: [] for name in engines}
        for prompt in prompts:
            for name, engine in engines.items():
                elapsed, result = decoded(engine, prompt, sampling)
                total[name] += elapsed
                results[name].append(result)
        for name in engines if number else ():
            seconds[name].append(total[name])
    for name, answers in results.items():
        for answer, expected in zip(answers, next(iter(results.values())), strict=True):
            if answer.ids.tolist() != expected.ids.tolist():
                raise ValueError(f"{name} wrote {answer.text!r} instead of {expected.text!r}")
    return {name: (statistics.median(values), results[name]) for name, values in seconds.items()}


def deeper(model: Model, layers: int) -> Model:
    """The model with at least so many layers, of which those that are new add nothing."""
    config = dataclasses.replace(model.config, num_groups=-(-layers // len(model.config.pattern)))

    def more(path, x):
        name, new = path[-1].key, np.repeat(np.asarray(x)[-1:], config.num_groups - len(x), 0)
        return np.concatenate([x, np.zeros_like(new) if name in ("o", "down") else new])

    groups = jax.tree_util.tree_map_with_path(more, model.params["groups"])
    return Model(model.params | {"groups": groups}, config, model.tokens_config, model.vocabulary, model.codec)


def trained(settings: Settings, model: Model, small: Drafter | None) -> None:
    """The table of a trained model: every task, every drafter."""
    drafters: dict[str, Drafter | None] = {"plain": None}
    for length in settings.lengths:
        drafters[f"look-up, {length}"] = LookUp(length)
        if isinstance(small, DraftModel):
            drafters[f"draft model, {length}"] = dataclasses.replace(small, length=length)
    drafters = dict(sorted(drafters.items(), key=lambda item: (item[1] is not None, item[0])))
    engines = {name: Engine(model.params, model.config, model._words, model.codec, drafter) for name, drafter in drafters.items()}
    world = World(WorldConfig())
    drafted = f", draft {count(small.config):,} parameters" if isinstance(small, DraftModel) else ""
    print(f"\n{model.config.num_layers} layers, {count(model.config):,} parameters{drafted}")
    print("| task | drafter, G | tokens | acceptance | tokens a round | ms a token | plain = 1 |\n|---|---|---|---|---|---|---|")
    for task in settings.tasks:
        prompts = [model.prompt(item.contents) for item in world.items(task, settings.items)]
        found = compare(engines, prompts, Sampling(temperature=0, max_output_tokens=320), settings.rounds)
        for name, (seconds, results) in found.items():
            tokens, rounds, accepted, rejected = (
                sum(getattr(result.usage, field) for result in results) for field in ("output_tokens", "rounds", "accepted", "rejected")
            )
            share = f"{accepted / max(accepted + rejected, 1):.2f} | {tokens / rounds:.2f}" if rounds else " | 1"
            faster = found["plain"][0] / seconds
            print(f"| {task} | {name} | {tokens} | {share} | {1e3 * seconds / tokens:.2f} | {faster:.2f} |", flush=True)


def costs(settings: Settings) -> None:
    """What a round costs in steps of a target of 60 M parameters, and the acceptance from which it pays. Random weights."""
    vocabulary = Vocabulary(train_bpe(["a big red circle", "a small blue star"], 300))
    target, small = mini(), tiny(16_384)
    params, draft = (init(config, jax.random.key(0)) for config in (target, small))
    drafters: dict[str, Drafter | None] = {"plain": None}
    for length in settings.lengths:
        drafters[f"look-up, {length}"] = LookUp(length)
        drafters[f"draft model, {length}"] = DraftModel(draft, small, length)
    engines = {name: Engine(params, target, vocabulary, drafter=drafter) for name, drafter in drafters.items()}
    prompts = [plain(np.random.default_rng(seed).integers(30, 280, 200)) for seed in range(3)]
    found = compare(engines, prompts, Sampling(temperature=0, max_output_tokens=48), settings.rounds)
    step = found["plain"][0] / sum(len(result.ids) for result in found["plain"][1])
    print(f"\nrandom weights: {count(target):,} parameters, draft {count(small):,}; a step takes {1e3 * step:.2f} ms")
    print("| drafter, G | a round in steps | pays from acceptance | 1.5 x from |\n|---|---|---|---|")
    for name, (seconds, results) in found.items():
        drafter = drafters[name]
        if drafter is not None:
            cost = seconds / sum(result.usage.rounds for result in results) / step
            print(f"| {name} | {cost:.2f} | {needed(cost, drafter.length)} | {needed(1.5 * cost, drafter.length)} |")


def needed(tokens: float, length: int) -> str:
    """The acceptance alpha at which a round writes so many tokens: (1 - alpha^(G + 1)) / (1 - alpha) = tokens."""
    alphas = np.linspace(0, 0.9999, 10_000)
    enough = (1 - alphas ** (length + 1)) / (1 - alphas) >= tokens
    return f"{alphas[enough.argmax()]:.2f}" if enough.any() else "never"


def main(settings: Settings) -> None:
    use_compilation_cache()
    if settings.model is not None:
        model = pollux.load(settings.model, draft=settings.draft)
        for target in (model, deeper(model, settings.layers)):
            trained(settings, target, model._drafter)
    if settings.costs:
        costs(settings)


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Settings, description=__doc__))
