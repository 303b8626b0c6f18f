"""`pollux teach`: what a teacher expects at every target of a run, written for students that then need no teacher beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pollux.commands.train import parse
from pollux.train.config import TrainConfig


@dataclass(frozen=True)
class Teaching:
    """Write a teacher's most probable ids at every target of a run, for students that then need no teacher beside them.

    Example: pollux teach recipes/distill_world.py --teacher runs/quickstart/model --out runs/targets --distill.top-k 16

    Then add `--distill.targets runs/targets` to `pollux train` with the same recipe and flags. Steps that are there already are kept, so
    that the same command goes on after a stop.
    """

    recipe: tyro.conf.Positional[str]
    """Path of the student's recipe, or its name in recipes/."""
    out: Path
    """Folder that receives the targets."""


@dataclass(frozen=True)
class ConfiguredTeaching(Teaching):
    __doc__ = Teaching.__doc__

    config: Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = tyro.MISSING


def main(arguments: list[str]) -> None:
    """Entry of `pollux teach`."""
    run = parse(arguments, "teach", Teaching, ConfiguredTeaching)
    from pollux.shrink.teach import teach

    teach(run.config, run.out, log=lambda line: print(line, flush=True))
