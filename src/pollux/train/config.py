"""One frozen config is a whole run: the model, what it reads, how it is optimised, and when to stop.

A recipe is a function that returns a TrainConfig; the loop needs nothing else. Every part validates itself.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pollux.data.mixture import DataConfig
from pollux.model.config import ModelConfig
from pollux.plain import from_plain
from pollux.tokens.config import TokensConfig

ScheduleKind = Literal["constant", "cosine", "inverse_sqrt", "warmup_stable_decay", "relative"]
ABSOLUTE: tuple[ScheduleKind, ...] = ("inverse_sqrt", "relative")  # factors that are learning rates themselves
OptimizerKind = Literal["adafactor", "adamw", "muon"]
Compute = Literal["float32", "bfloat16"]
Direction = Literal["forward", "reverse"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class ScheduleConfig:
    """The factor that multiplies every learning rate; formulas in train/schedule.py.

    "inverse_sqrt" and "relative" are rates themselves and need optimizer.learning_rate = 1; the others rise to 1 and fall to `floor`.
    """

    kind: ScheduleKind = "warmup_stable_decay"
    warmup: int = 50  # steps of linear rise
    decay: float = 0.4  # warmup_stable_decay: share of the run in the final linear fall
    floor: float = 0.0  # cosine and warmup_stable_decay end at this factor

    def __post_init__(self):
        _require(self.kind in get_args(ScheduleKind), f"schedule.kind {self.kind!r} must be one of {', '.join(get_args(ScheduleKind))}")
        _require(self.warmup >= 0, f"schedule.warmup {self.warmup} must be 0 or more steps")
        _require(self.kind != "inverse_sqrt" or self.warmup >= 1, "schedule.warmup must be at least 1 step for 'inverse_sqrt'")
        _require(0 < self.decay <= 1, f"schedule.decay {self.decay} must be a share of the run in (0, 1]")
        _require(0 <= self.floor <= 1, f"schedule.floor {self.floor} must be in [0, 1]")


@dataclass(frozen=True)
class OptimizerConfig:
    """muon: matrices by Muon at `matrix_learning_rate`, the rest by Adam at `learning_rate`; others: all at `learning_rate`."""

    kind: OptimizerKind = "muon"
    learning_rate: float = 3e-3  # at a schedule factor of 1
    matrix_learning_rate: float = 1e-2  # muon only; an update has the RMS 0.2 x this, as an Adam update would
    beta1: float = 0.9  # decay of Adam's first moment
    beta2: float = 0.95  # decay of Adam's second moment
    epsilon: float = 1e-8  # added to Adam's denominator
    momentum: float = 0.95  # decay of Muon's Nesterov momentum
    weight_decay: float = 0.0  # decoupled, times the learning rate, on matrices only
    frozen: tuple[str, ...] = ()  # parameters that keep their values, by the first names of their path: "soft.image", "groups"

    def __post_init__(self):
        _require(self.kind in get_args(OptimizerKind), f"optimizer.kind {self.kind!r} must be one of {', '.join(get_args(OptimizerKind))}")
        for name in ("learning_rate", "matrix_learning_rate", "epsilon"):
            _require(getattr(self, name) > 0, f"optimizer.{name} {getattr(self, name)} must be positive")
        for name in ("beta1", "beta2", "momentum"):
            _require(0 <= getattr(self, name) < 1, f"optimizer.{name} {getattr(self, name)} must be in [0, 1)")
        _require(self.weight_decay >= 0, f"optimizer.weight_decay {self.weight_decay} must be 0 or more")


@dataclass(frozen=True)
class LoraConfig:
    """Train W + alpha / rank A B with W frozen in the dtype of its folder, A [K, rank] and B [rank, N] (Hu et al. 2021)."""

    rank: int = 0  # 0 = off: the weights themselves are trained
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention", "feed_forward")  # what gets adapters: parts of a layer, "attention.q", or "soft.image"

    def __post_init__(self):
        _require(self.rank >= 0, f"lora.rank {self.rank} must be 0 (off) or more")
        _require(self.alpha > 0, f"lora.alpha {self.alpha} must be positive")
        _require(bool(self.targets), "lora.targets must name what gets adapters")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class LossConfig:
    """alpha LM + beta InfoNCE + gamma (z log^2 Z + balance x expert balance)."""

    alpha: float = 1.0  # weight of the LM loss
    beta: float = 0.0  # weight of InfoNCE; 0 = pairs are not compared at all
    gamma: float = 1.0  # weight of the regularisers
    z: float = 1e-4  # share of log^2 Z in them
    balance: float = 1e-2  # share of the expert balance in them
    text: float = 1.0  # weight of a text target in LM
    draw: float = 1.0  # weight of an image-code target in LM

    def __post_init__(self):
        for part in dataclasses.fields(self):
            _require(getattr(self, part.name) >= 0, f"loss.{part.name} {getattr(self, part.name)} must be 0 or more")


@dataclass(frozen=True)
class DistillConfig:
    """With a teacher the LM loss is (1 - weight) cross-entropy + weight temperature^2 KL; see train/distillation.py."""

    teacher: str = ""  # model folder; it reads the batches of the run and does not change. "" = none
    targets: str = ""  # folder of what a teacher made of these very batches, by `pollux teach`; then no teacher runs
    weight: float = 0.5  # share of the KL in the LM loss, the rest is cross-entropy
    temperature: float = 1.0  # that divides the logits of both
    top_k: int = 0  # most probable ids of the teacher that are told apart, the rest is one outcome; 0 = all ids
    direction: Direction = "forward"  # "forward": KL(teacher || student), "reverse": KL(student || teacher)
    on_policy: float = 0.0  # share of the steps that read answers of the student itself; see train/on_policy.py
    answer_tokens: int = 128  # most tokens of such an answer

    def __post_init__(self):
        _require(0 <= self.weight <= 1, f"distill.weight {self.weight} must be in [0, 1]")
        _require(self.temperature > 0, f"distill.temperature {self.temperature} must be positive")
        _require(self.top_k >= 0, f"distill.top_k {self.top_k} must be 0 (all ids) or positive")
        _require(not self.targets or self.top_k > 0, "distill.targets holds the most probable ids alone: set distill.top_k to their number")
        _require(0 <= self.on_policy <= 1, f"distill.on_policy {self.on_policy} must be in [0, 1]")
        beside = bool(self.teacher) and not self.targets
        _require(not self.on_policy or beside, "distill.on_policy needs distill.teacher beside the student, not distill.targets")
        _require(self.answer_tokens >= 1, f"distill.answer_tokens {self.answer_tokens} must be at least 1")
        _require(self.direction in get_args(Direction), f"distill.direction {self.direction!r} must be 'forward' or 'reverse'")


@dataclass(frozen=True)
class TrainConfig:
    """Everything about one run.

    Give `steps` or `minutes`, not both. With `steps` a run is a function of the config: it repeats and resumes bit for bit. With
    `minutes` the schedule follows the elapsed share of the time, so the number of steps, and hence the weights, depend on the machine.
    """

    model: ModelConfig
    tokens: TokensConfig
    data: DataConfig
    vocabulary: str  # folder with tokenizer.json
    codec: str = ""  # folder of the image codec; "" = the model does not draw
    start: str = ""  # model folder whose weights the run begins with; "" = random ones, from the seed
    rows: int = 8  # of packed documents in a batch
    row_length: int = 512  # tokens
    targets_per_row: int = 256  # predicted tokens that a row has room for
    soft_per_batch: dict[str, int] = field(default_factory=dict)  # "image", "audio", "video": soft tokens that the rows share
    pairs_per_row: int = 8  # contrastive pairs compared in one row; further ones are not
    steps: int = 0  # optimiser steps of the run; 0 = `minutes` decide
    minutes: float = 0.0  # time of the run from its first batch on, compilation included; 0 = `steps` decide
    lora: LoraConfig = field(default_factory=LoraConfig)
    weight_bits: int = 0  # 4 or 8: every step reads its matrices rounded as `pollux quantize --method nearest` does; 0 = as they are
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    compute: Compute = "float32"  # activations and products; parameters and optimiser state stay float32
    accumulation: int = 1  # batches of `rows` rows in one optimiser step
    clip: float = 1.0  # largest global norm of the gradient; 0 = off
    ema: float = 0.0  # decay of the averaged weights that are exported; 0 = off
    divergence: float = 10.0  # stop when the LM loss exceeds this many times ln(vocabulary), what a uniform guess costs
    workers: int = 0  # processes that read and encode documents; 0 = a thread of this one
    seed: int = 0  # of the parameters and of the order of the data
    log_every: int = 10  # steps whose means make one line of metrics.jsonl
    checkpoint_every: int = 500  # steps between checkpoints; 0 = only at the end
    keep_checkpoints: int = 2  # the newest ones
    evaluate_every: int = 200  # steps between measurements of the loss on held-out documents, also taken at the end; 0 = only there
    samples: int = 8  # prompts that the finished model answers on the run page; 0 = none

    def __post_init__(self):
        _require(
            (self.steps > 0) != (self.minutes > 0),
            f"one of steps ({self.steps}) and minutes ({self.minutes:g}) must be 0 and the other positive",
        )
        for name in ("rows", "row_length", "targets_per_row", "pairs_per_row", "accumulation", "log_every", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, f"{name} {getattr(self, name)} must be at least 1")
        _require(self.targets_per_row <= self.row_length, f"targets_per_row {self.targets_per_row} exceeds row_length {self.row_length}")
        _require(self.evaluate_every >= 0, f"evaluate_every {self.evaluate_every} must be 0 (only at the end) or more steps")
        _require(self.samples >= 0, f"samples {self.samples} must be 0 (none) or more prompts")
        _require(self.workers >= 0, f"workers {self.workers} must be 0 or more processes")
        _require(self.checkpoint_every >= 0, f"checkpoint_every {self.checkpoint_every} must be 0 (only at the end) or more steps")
        _require(self.compute in get_args(Compute), f"compute {self.compute!r} must be 'float32' or 'bfloat16'")
        _require(0 <= self.ema < 1, f"ema {self.ema} must be in [0, 1)")
        _require(self.clip >= 0, f"clip {self.clip} must be 0 (off) or positive")
        _require(self.divergence > 0, f"divergence {self.divergence} must be positive")
        _require(self.weight_bits in (0, 4, 8), f"weight_bits {self.weight_bits} must be 0 (off), 4 or 8")
        _require(
            not (self.weight_bits and self.lora.rank),
            "weight_bits rounds weights that are trained: train adapters (lora.rank) beside a quantised folder",
        )
        _require(bool(self.start) or not self.lora.rank, "lora.rank needs a model to adapt: start must name its folder")
        if self.schedule.kind in ABSOLUTE:
            for name in ("learning_rate", *(("matrix_learning_rate",) if self.optimizer.kind == "muon" else ())):
                rate = getattr(self.optimizer, name)
                _require(
                    rate >= 0.1,
                    f"schedule.kind {self.schedule.kind!r} gives the learning rate itself, and optimizer.{name} {rate:g} would multiply it:"
                    f" set optimizer.{name} to 1, or to no less than 0.1",
                )
        inputs = {s.name: s.features for s in self.model.soft_inputs}
        for name in self.soft_per_batch:
            _require(name in inputs, f"soft_per_batch names {name!r}, but the model's soft_inputs are {sorted(inputs)}")
        for name, features in inputs.items():
            expected = getattr(self.tokens, name).features
            _require(features == expected, f"model.soft_inputs {name!r} takes {features} features, but tokens.{name} makes {expected}")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainConfig:
        """Inverse of to_json, also after a trip through a file. Raises ValueError naming an unknown field."""
        return from_plain(cls, data | ({"model": ModelConfig.from_json(data["model"])} if "model" in data else {}))
