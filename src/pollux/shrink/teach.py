"""The offline half of distillation: a teacher reads every batch of a student's run and leaves its most probable ids in files.

A batch is a function of (config, step), so teacher and students may run on other machines and at other times.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import jax
import numpy as np

from pollux.compilation import use_compilation_cache
from pollux.train.config import TrainConfig
from pollux.train.distillation import expectation
from pollux.train.reading import open_batches, open_vocabulary, stack
from pollux.train.teacher import load_teacher, targets_file, write_settings, write_targets


def teach(config: TrainConfig, out: Path, log: Callable[[str], None] = print) -> None:
    """Write the top k of `distill.teacher` for every step of the run into the folder `out`; steps that are there stay as they are.

    Raises ValueError if the config lacks a teacher, a number of ids or a number of steps, or the teacher does not fit the run.
    """
    for name, value in (("distill.teacher", config.distill.teacher), ("distill.top_k", config.distill.top_k), ("steps", config.steps)):
        if not value:
            raise ValueError(f"targets are made by a teacher, of a number of ids, for a number of steps: {name} is not given")
    use_compilation_cache()
    vocabulary, codec = open_vocabulary(config)
    teacher = load_teacher(config, vocabulary, codec)
    write_settings(out, config)
    expect = jax.jit(lambda teacher, batch: expectation(teacher, config.distill, batch))
    with closing(iter(open_batches(config, vocabulary, codec))) as batches:
        for step in range(1, config.steps + 1):
            read = [next(batches) for _ in range(config.accumulation)]
            if not targets_file(out, config.seed, step).is_file():
                said = [expect(teacher, batch) for batch in read]
                write_targets(out, config.seed, step, stack(read), jax.tree.map(lambda *x: np.stack(x), *said))
            if step % config.log_every == 0 or step == config.steps:
                log(f"step {step} of {config.steps}")
