"""Is one decoder that learns pictures and text together better than parts that were trained apart and joined, at equal cost?

    .venv/bin/python benchmarks/native_or_stitched.py --minutes 4 --write          twice about 4 minutes of training, then 2 of judging

*Native*: one tiny decoder learns picture documents and text from nothing. *Stitched*, as most open vision-language models are made: the
same decoder learns the text alone; an image encoder (the same patch embedder, then half of the same blocks, two-way over a picture) learns
by InfoNCE to match pictures with their descriptions; then both are frozen and a two-layer projector learns, from the picture
documents, to put the encoder's outputs where the decoder expects words. The native side trains for the minutes given. At equal cost the
three phases of the stitched side share as many floating-point operations, as XLA counts them in the compiled steps (`--equal
operations`, which does not depend on what else the machine does), or as many seconds, compilation left out. Text is stories and scenes
told in words, with the captions and questions that pictures have, so that the text decoder knows what is asked; text may name the
pairs that no picture shows.
Shapes: P pictures, N soft tokens of a picture, F features of a patch, D model.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads would spin against XLA's

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from pollux.commands.memory import keep_freed_memory
from pollux.compilation import use_compilation_cache
from pollux.content import Content, Document, Text
from pollux.data.batches import Batches
from pollux.data.mixture import DataConfig, Mixture, SourceConfig
from pollux.data.source import WorldSource
from pollux.data.world import World, WorldConfig, grammar, sample_scene, stream
from pollux.evaluate.score import normal
from pollux.evaluate.world import Outcome, run
from pollux.generate.model import Model
from pollux.model import decoder
from pollux.model.config import ModelConfig, SoftInputConfig
from pollux.model.family import tiny
from pollux.model.params import Params, count, declare
from pollux.recipes import trained_vocabulary
from pollux.tokens.config import ImageTokens, TokensConfig
from pollux.tokens.sequence import Batch, Inputs, Sequence, SoftBatch
from pollux.tokens.vocabulary import SPECIAL_IDS, Vocabulary
from pollux.train import objective, schedule
from pollux.train.config import LossConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from pollux.train.reading import stack
from pollux.train.step import initial_state, make_step

PAGE = Path(__file__).resolve().parent.parent / "docs" / "native-or-stitched.md"
TOKENS = TokensConfig(ImageTokens(patch=20, stride=16, max_tokens=9, standardise=True))
N = TOKENS.image.max_tokens  # every picture of the world takes all of them
BEFORE_PICTURE = [SPECIAL_IDS[name] for name in ("<bos>", "<user>", "<image>")]
WORLD = WorldConfig(captions=1, listings=1, questions=4)
PAIRS = WorldConfig(captions=0, questions=0, single_turn_share=0.0, align_share=1.0)  # pictures with a description to match
COMPARED = 32  # pictures that a batch of the encoder holds, at most
FRESH = 1_000_000  # index of the first picture document that no training reads
FRESH_BATCHES = 8


@dataclass(frozen=True)
class Settings:
    minutes: float = 4.0  # that the native side trains
    equal: Literal["operations", "seconds"] = "operations"  # what the stitched side gets as many of
    shares: tuple[float, float, float] = (0.25, 0.35, 0.4)  # of them: for the text decoder, the image encoder and the projector
    captioning: float = 0.0  # weight of captions in the encoder's loss beside InfoNCE; 2 is that of CoCa (Yu et al. 2022)
    text: float = 0.25  # share of text in the documents of the native side
    items: int = 320  # of each task and split
    seed: int = 0
    work: Path = Path("runs/native-or-stitched")  # receives the tokeniser
    write: bool = False  # put the table into docs/native-or-stitched.md


@dataclass(frozen=True)
class Documents:
    """World documents by task: "picture", "pair" (a picture and its description), "captioned pair", "told" (a scene in words), "story"."""

    seed: int
    first: int = 0

    def document(self, task: str, index: int) -> Document:
        index += self.first
        if task == "told":
            return told(stream(self.seed, task, index))
        configs = {"pair": PAIRS, "captioned pair": dataclasses.replace(PAIRS, captions=1)}
        world = World(dataclasses.replace(configs.get(task, WORLD), seed=self.seed))
        return world.document("picture" if task in configs else task, index)


def told(rng: np.random.Generator) -> Document:
    """A picture document with the picture's description, in any style, in the place of the picture."""
    scene = sample_scene(rng, WORLD.picture, held_out=bool(rng.random() < 0.25))
    style = list(grammar.STYLES)[rng.integers(len(grammar.STYLES))]
    exchanges = grammar.captions(rng, scene, WORLD.captions) + grammar.listings(rng, scene, WORLD.listings)
    exchanges += grammar.questions(rng, scene, WORLD.questions)
    branches = tuple((Content("user", (Text(e.prompt),)), Content("model", (Text(e.answer),))) for e in exchanges)
    return Document((Content("user", (Text(grammar.describe(scene, style)),)),), branches)


@dataclass(frozen=True)
class StitchedConfig(TrainConfig):
    """A run whose soft inputs are outputs of the encoder, so their width is not what tokens/ makes of pixels."""

    def __post_init__(self):
        pass


@dataclass(frozen=True)
class Trained:
    """The averaged parameters of one phase and what it took."""

    config: TrainConfig
    params: Params
    steps: int
    pictures: int
    seconds: float
    operations: float  # of all steps
    losses: dict[str, float]  # means over the last tenth of the steps

    def line(self, name: str) -> str:
        losses = ", ".join(f"{key} {value:.3f}" for key, value in self.losses.items())
        cost = f"{self.operations / 1e12:.2f} | {self.seconds:.0f}"
        return f"| {name} | {cost} | {self.steps} | {self.pictures} | {count(self.config.model):,} | {losses} |"


Encoder = Trained


def settings_of_a_run(model: ModelConfig, settings: Settings, **changes: Any) -> dict[str, Any]:
    """Arguments of TrainConfig that the phases share: those of the quick start, on pictures and text alone."""
    return (
        dict(
            model=model,
            tokens=TOKENS,
            data=DataConfig((SourceConfig("world", "story"),)),  # not read: `batches` brings the documents
            vocabulary="",
            rows=4,
            row_length=288,
            targets_per_row=176,
            soft_per_batch={"image": 18 * N} if model.soft_inputs else {},
            minutes=1.0,  # not read: `train` decides
            optimizer=OptimizerConfig(learning_rate=3e-3, matrix_learning_rate=1e-2),
            schedule=ScheduleConfig(warmup=50, decay=0.5),
            ema=0.99,
            seed=settings.seed,
        )
        | changes
    )


def batches(config: TrainConfig, vocabulary: Vocabulary, weights: dict[str, float], first: int = 0) -> Iterator[Batch]:
    """Packed batches of Documents, in shares of `weights` by task, made ahead in a thread."""
    shape = dict(rows=config.rows, row_length=config.row_length, targets_per_row=config.targets_per_row, seed=config.seed)
    dataset = Batches(config.data, TOKENS, vocabulary, soft_per_batch=config.soft_per_batch, **shape)
    mixture = Mixture([WorldSource(Documents(config.seed, first), task) for task in weights], list(weights.values()), seed=config.seed)
    dataset.mixture = mixture
    dataset.encoder = dataclasses.replace(dataset.encoder, mixture=mixture)
    return iter(dataset)


def train(
    config: TrainConfig,
    read: Iterator[Batch],
    seconds: float = 0.0,
    operations: float = 0.0,
    encoder: Encoder | None = None,
    start: Params | None = None,
) -> Trained:
    """Steps until the seconds or the operations are used up. encoder: maps pictures before each step. start: parameters, by their
    first name, to begin with."""
    state = jax.jit(lambda: initial_state(config))()
    if start:
        params = state.params | start
        state = dataclasses.replace(state, params=jax.tree.map(jnp.copy, params), ema=jax.tree.map(jnp.copy, params))
    update = make_step(config)

    def step(state, batch, factor, encoder_params):
        if encoder is not None:
            batch = through_encoder(encoder_params, encoder.config.model, batch)
        state, metrics = update(state, batch, factor)
        # Without the norm of all gradients nothing needs those of frozen parameters, and XLA leaves them out.
        return state, {str(name): metrics[name] for name in ("text", "align") if name in metrics}

    batch = stack([next(read)])
    encoder_params = encoder.params if encoder else None
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch, np.float32(1), encoder_params).compile()
    analysis = compiled.cost_analysis()
    assert analysis is not None, "the backend counts no operations"
    cost = analysis["flops"]
    steps = pictures = 0
    losses: list[dict[str, float]] = []
    pending: dict[str, jax.Array] = {}
    begin = time.perf_counter()
    while (share := steps * cost / operations if operations else (time.perf_counter() - begin) / seconds) < 1:
        factor = np.float32(schedule.factor(config.schedule, steps + 1, share, config.model.d_model))
        state, new = compiled(state, batch, factor, encoder_params)
        steps += 1
        pictures += sum(int((soft.index < config.rows * config.row_length).sum()) // N for soft in batch.inputs.soft.values())
        losses += [{name: float(value) for name, value in pending.items()}] if pending else []  # one step late
        pending = new
        batch = stack([next(read)])
    jax.block_until_ready(state)
    last = losses[-max(1, len(losses) // 10) :]
    means = {name: float(np.mean([one[name] for one in last])) for name in pending if name == "align" or config.loss.alpha}
    assert state.ema is not None
    return Trained(config, state.ema, steps, pictures, time.perf_counter() - begin, steps * cost, means)


@functools.partial(jax.jit, static_argnames="config")
def encode_pictures(params: Params, config: ModelConfig, features_PNF: jax.Array, coord_PN2: jax.Array) -> jax.Array:
    """The encoder's outputs [P, N, D], each picture in a document of its own as in its training."""
    P, N, _ = features_PNF.shape
    head = len(BEFORE_PICTURE)
    ids = jnp.broadcast_to(jnp.array(BEFORE_PICTURE + [SPECIAL_IDS["<image_soft>"]] * N, jnp.int32), (P, head + N))
    place = jnp.broadcast_to(jnp.arange(head + N, dtype=jnp.int32), ids.shape)
    soft = SoftBatch(features_PNF, place[:, head:], coord_PN2)
    inputs = Inputs(ids, place, jnp.ones_like(ids), jnp.zeros_like(ids), (place >= head).astype(jnp.int32), {"image": soft})
    return decoder.hidden(params, config, inputs).hidden[:, head:]


def through_encoder(params: Params, config: ModelConfig, batch: Batch) -> Batch:
    """The batch (leaves [A, ...]) with the encoder's outputs as the features of its pictures, which take N slots each."""
    soft = batch.inputs.soft["image"]
    features = soft.features.reshape(-1, N, soft.features.shape[-1])
    encoded = jax.lax.stop_gradient(encode_pictures(params, config, features, soft.coord.reshape(-1, N, 2)))
    new = dataclasses.replace(soft, features=encoded.reshape(*soft.features.shape[:-1], -1))
    return dataclasses.replace(batch, inputs=dataclasses.replace(batch.inputs, soft={"image": new}))


class StitchedModel(Model):
    """A model whose prompts' pictures pass through the encoder first."""

    def __init__(self, params: Params, config: ModelConfig, vocabulary: Vocabulary, encoder: Encoder):
        super().__init__(params, config, TOKENS, vocabulary)
        self.encoder = encoder

    def prompt(self, contents: Any) -> Sequence:
        sequence = super().prompt(contents)
        soft = {}
        for name, part in sequence.soft.items():
            encoded = encode_pictures(self.encoder.params, self.encoder.config.model, part.features[None], part.coord[None])
            soft[name] = dataclasses.replace(part, features=np.asarray(encoded[0]))
        return dataclasses.replace(sequence, soft=soft)


def train_native(settings: Settings, model: ModelConfig, vocabulary: Vocabulary) -> tuple[Model, dict[str, Trained]]:
    config = TrainConfig(**settings_of_a_run(model, settings))
    weights = {"picture": 1 - settings.text, "told": 0.8 * settings.text, "story": 0.2 * settings.text}
    native = train(config, batches(config, vocabulary, weights), seconds=60 * settings.minutes)
    return Model(native.params, model, TOKENS, vocabulary), {"native": native}


def train_stitched(
    settings: Settings, model: ModelConfig, vocabulary: Vocabulary, native: Trained
) -> tuple[StitchedModel, dict[str, Trained]]:
    whole = getattr(native, settings.equal)
    budgets = [{settings.equal: whole * share / sum(settings.shares)} for share in settings.shares]
    config = TrainConfig(**settings_of_a_run(dataclasses.replace(model, soft_inputs=()), settings))
    text = train(config, batches(config, vocabulary, {"told": 0.8, "story": 0.2}), **budgets[0])

    half = dataclasses.replace(model, name="encoder", num_groups=model.num_groups // 2)
    loss = LossConfig(alpha=settings.captioning, beta=1.0, gamma=0.0)
    task, rows = ("captioned pair", 11) if settings.captioning else ("pair", 8)
    more = dict(rows=rows, soft_per_batch={"image": COMPARED * N}, loss=loss)
    config = TrainConfig(**settings_of_a_run(half, settings, **more))
    encoder = train(config, batches(config, vocabulary, {task: 1.0}), **budgets[1])

    projector = SoftInputConfig("image", half.d_model, hidden=2 * model.d_model, grid=16)
    joined = dataclasses.replace(model, name="stitched", soft_inputs=(projector,))
    trunk = {name: value for name, value in text.params.items() if name != "soft"}
    frozen = tuple(name for name in trunk if jax.tree.leaves(declare(joined)[name]))
    changes = dict(optimizer=OptimizerConfig(learning_rate=3e-3, matrix_learning_rate=1e-2, frozen=frozen), clip=0.0)
    stitched_config = StitchedConfig(**settings_of_a_run(joined, settings, **changes))
    read = batches(stitched_config, vocabulary, {"picture": 1.0})
    stitched = train(stitched_config, read, **budgets[2], encoder=encoder, start=trunk)
    phases = {"stitched: text decoder": text, "stitched: image encoder": encoder, "stitched: projector": stitched}
    return StitchedModel(stitched.params, joined, vocabulary, encoder), phases


def fresh_loss(trained: Trained, vocabulary: Vocabulary, encoder: Encoder | None) -> float:
    """Nats per target on picture documents that nobody trained on."""

    @jax.jit
    def nats(params, batch, encoder_params):
        if encoder is not None:
            batch = through_encoder(encoder_params, encoder.config.model, batch)
        _, metrics = objective.loss(params, trained.config, jax.tree.map(lambda x: x[0], batch))
        return metrics["text"]

    read = batches(trained.config, vocabulary, {"picture": 1.0}, FRESH)
    values = [nats(trained.params, stack([next(read)]), encoder.params if encoder else None) for _ in range(FRESH_BATCHES)]
    return float(np.mean(values))


def words_right(outcome: Outcome) -> float:
    """Share of the right answers' words that stand in their place."""
    answered = zip(outcome.cases, outcome.results, strict=True)
    pairs = [(normal(case.answer).split(), normal(result.text).split()) for case, result in answered]
    right = sum(a == b for reference, said in pairs for a, b in zip(reference, said, strict=False))
    return right / sum(len(reference) for reference, _ in pairs)


def judge(model: Model, world: World, items: int) -> dict[str, float]:
    """Name of a figure -> share right, greedy answers."""
    figures: dict[str, float] = {}
    for split, name in (("seen", "seen pairs"), ("held_out", "held-out pairs")):
        outcome = run(model, "caption", world.items("caption", items, split))
        figures |= {f"caption exact, {name}": outcome.share, f"caption words, {name}": words_right(outcome)}
        outcome = run(model, "vqa", world.items("vqa", items, split))
        figures[f"questions, {name}"] = outcome.share
        figures |= {f"- {kind}, {name}": part.share for kind, part in outcome.by_kind().items()}
    return figures | {"stories (text alone)": run(model, "story", world.items("story", items)).share}


def table(settings: Settings, phases: dict[str, Trained], losses: dict[str, float], figures: dict[str, dict[str, float]]) -> str:
    """Markdown: what each phase did, then the figures of both sides beside those of guessing."""
    chance = World(WORLD).chance("vqa", 1600)
    lines = [
        f"{settings.minutes:g} minutes of the native side, equal {settings.equal}, captioning {settings.captioning:g}, "
        f"{settings.items} items a task and split, seed {settings.seed}; "
        f"{datetime.date.today()}, {os.cpu_count()} cores, jax {jax.__version__}.",
        "",
        "| phase | TFLOP | seconds | steps | pictures | parameters | last losses (nats) |",
        "|---|---|---|---|---|---|---|",
        *(trained.line(name) for name, trained in phases.items()),
        "",
        f"| held out from training | {' | '.join(figures)} | guessing |",
        f"|---|{'---|' * (len(figures) + 1)}",
        f"| nats per target, new pictures | {' | '.join(f'{losses[side]:.3f}' for side in figures)} | |",
    ]
    for name in next(iter(figures.values())):
        kind = name.split(",")[0].removeprefix("- ")
        guess = f"{chance[kind]:.2f}" if kind in chance else ""
        lines.append(f"| {name} | {' | '.join(f'{figures[side][name]:.3f}' for side in figures)} | {guess} |")
    chance_to_match = f"`align` is InfoNCE, by chance up to ln {COMPARED} = {math.log(COMPARED):.2f}"
    return "\n".join([*lines, "", f"{chance_to_match}; `text` is the loss of each phase's own documents."])


def main(settings: Settings) -> None:
    use_compilation_cache()
    _, vocabulary = trained_vocabulary(settings.work / "tokenizer", lambda: World(WORLD).text_sample(4000), 640)
    whole = tiny(vocabulary.size, TOKENS)
    model = dataclasses.replace(whole, soft_inputs=tuple(s for s in whole.soft_inputs if s.name == "image"))
    world = World(dataclasses.replace(WORLD, seed=settings.seed))
    native, phases = train_native(settings, model, vocabulary)
    print(phases["native"].line("native"), flush=True)
    losses = {"native": fresh_loss(phases["native"], vocabulary, None)}
    figures = {"native": judge(native, world, settings.items)}
    stitched, parts = train_stitched(settings, model, vocabulary, phases["native"])
    print(*(trained.line(name) for name, trained in parts.items()), sep="\n", flush=True)
    losses["stitched"] = fresh_loss(parts["stitched: projector"], vocabulary, stitched.encoder)
    figures["stitched"] = judge(stitched, world, settings.items)
    phases |= parts
    text = table(settings, phases, losses, figures)
    print(text)
    if settings.write:
        given = (
            f"--minutes {settings.minutes:g} --equal {settings.equal} --captioning {settings.captioning:g} --seed {settings.seed} --write"
        )
        command = f".venv/bin/python benchmarks/native_or_stitched.py {given}"
        PAGE.write_text(f"# Native or stitched\n\nWhat is compared: the head of the program.\n\n    {command}\n\n{text}\n")


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Settings, description=__doc__))
