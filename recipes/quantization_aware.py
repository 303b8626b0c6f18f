"""Prepare a model of the built-in world for 4 bits: every step reads its matrices rounded, and the model as it was is the teacher.

    pollux train recipes/quantization_aware.py --model runs/quickstart/model --out runs/aware
    pollux quantize runs/aware/model --method nearest --out runs/aware/model-4bit

After 300 steps, some two minutes, the ten-minute model of the quick start loses nothing by 4 bits: its loss of text is .2480, as trained
.2497, with gptq .2550 (docs/lab-notes.md). The logged losses are those of the rounded weights; OUT/model holds the weights behind them.
"""

import dataclasses
from pathlib import Path

from pollux.train.config import DistillConfig, LoraConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from pollux.train.reading import written_config


def recipe(model: Path, bits: int = 4) -> TrainConfig:
    """A short run that begins with the weights of a model.

    Args:
        model: Model folder, still in the folder of the run that made it.
        bits: 4 or 8.
    """
    run = written_config(model.parent)
    return dataclasses.replace(
        run,
        vocabulary=str(model),
        codec=str(model) if run.codec else "",
        start=str(model),
        steps=300,
        minutes=0.0,
        seed=run.seed + 1,  # other documents than those of the run before
        distill=DistillConfig(str(model)),
        lora=LoraConfig(),
        weight_bits=bits,
        optimizer=OptimizerConfig("adamw", learning_rate=3e-4),
        schedule=ScheduleConfig(warmup=20, decay=1.0),
        ema=0.0,
    )
