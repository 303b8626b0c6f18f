"""A complete run on a small folder of text; as a program, one that is killed: `python short_run.py HOME OUT STEP`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from random_batch import small_model

from pollux.data.folder import FolderConfig
from pollux.data.mixture import DataConfig, SourceConfig
from pollux.model.folder import hash_params, load_config, load_params
from pollux.tokens.config import TokensConfig
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary
from pollux.train import loop, schedule
from pollux.train.config import TrainConfig

VOCABULARY = 300


def prepare(home: Path) -> None:
    """Write the texts and the vocabulary of the run."""
    texts = [f"Number {i} comes before {i + 1}, and {i * i} is its square." for i in range(60)]
    (home / "texts").mkdir()
    for i, text in enumerate(texts):
        (home / "texts" / f"{i}.txt").write_text(text)
    Vocabulary(train_bpe(iter(texts), VOCABULARY)).save(home)


def config(home: Path, **changes) -> TrainConfig:
    options = dict(
        model=small_model(vocab_size=VOCABULARY + 64, soft_inputs=()),
        tokens=TokensConfig(),
        data=DataConfig((SourceConfig("folder", path=str(home / "texts")),), folder=FolderConfig(held_out=0.2)),
        vocabulary=str(home),
        rows=2,
        row_length=64,
        targets_per_row=64,
        accumulation=2,
        steps=12,
        ema=0.9,
        log_every=2,
        checkpoint_every=3,
        evaluate_every=5,
        samples=0,
    )
    return TrainConfig(**(options | changes))


def hash_of(model: Path) -> str:
    return hash_params(load_params(model, load_config(model)[0]))


if __name__ == "__main__":
    home, out, last_step = sys.argv[1:]
    factor = schedule.factor

    def kill_at_last_step(config, step, *rest):
        if step == int(last_step):
            os.kill(os.getpid(), signal.SIGKILL)
        return factor(config, step, *rest)

    schedule.factor = kill_at_last_step
    loop.run(config(Path(home)), out)
