"""Nano-1, 1.8 B parameters, distilled from a larger model of pollux or Gemma 4 on your own mixture of folders.

    pollux train recipes/nano_1.py --teacher runs/pro/model --folders web books pictures --out runs/nano-1

`pollux model nano-1` says what it takes. Where teacher and student do not fit side by side, let the teacher go first:

    pollux teach recipes/nano_1.py --teacher runs/pro/model --folders web books pictures --out runs/targets

and add `--distill.targets runs/targets` to the first command.
"""

from pathlib import Path

from pollux.recipes import student
from pollux.train.config import TrainConfig


def recipe(teacher: Path, folders: tuple[Path, ...]) -> TrainConfig:
    """A run of the student.

    Args:
        teacher: Model folder of the teacher, whose ids and way of reading media the student takes over.
        folders: What to train on, in equal shares.
    """
    return student("nano-1", teacher, folders)
