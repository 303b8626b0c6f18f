"""A small student of a model that was trained on the built-in world, on the mixture that its teacher read.

    pollux train recipes/distill_world.py --teacher runs/quickstart/model --out runs/student --steps 2000

The same student without the teacher, for comparison: `--distill.teacher ""`. After 2,000 steps with a teacher of half an hour, captions are
right for .80 (alone .74), questions .83 (.77), drawings .71 (.59); docs/lab-notes.md has all tasks.
"""

import dataclasses
from pathlib import Path

from pollux.model.family import tiny
from pollux.train.config import DistillConfig, LoraConfig, TrainConfig
from pollux.train.reading import written_config


def recipe(teacher: Path) -> TrainConfig:
    """A run of the `tiny` student.

    Args:
        teacher: Model folder, still in the folder of the run that made it.
    """
    run = written_config(teacher.parent)
    return dataclasses.replace(
        run,
        model=tiny(run.model.vocab_size, run.tokens),
        vocabulary=str(teacher),
        codec=str(teacher) if run.codec else "",
        start="",
        steps=2000,
        minutes=0.0,
        seed=run.seed + 1,  # other documents and another start than the teacher's
        distill=DistillConfig(str(teacher), weight=0.7),
        lora=LoraConfig(),
        optimizer=dataclasses.replace(run.optimizer, frozen=()),
    )
