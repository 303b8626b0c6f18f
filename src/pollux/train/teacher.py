"""The teacher of a run: a model folder that reads the batches beside the student, or files with what it made of each step.

FOLDER/targets.json says how the files were made; FOLDER/seed-S/step-N.safetensors holds the TopK of step N of the run with seed S, so
that a student that was killed goes on with the targets of its next step. Each file carries a fingerprint of the batch it is about.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pollux.model.folder import load_config, load_params
from pollux.tokens.sequence import Batch
from pollux.tokens.vocabulary import Vocabulary
from pollux.train.config import TrainConfig
from pollux.train.distillation import Teacher, TopK
from pollux.train.metrics import write_whole

if TYPE_CHECKING:
    from pollux.tokens.codec import Codec

SETTINGS = "targets.json"


def open_teacher(config: TrainConfig, vocabulary: Vocabulary, codec: Codec | None) -> Callable[[int, Batch], Teacher | TopK | None]:
    """What a step needs beside its batch: teacher(step, batch), leaves of the batch [A, ...]; None for a run without a teacher.

    Raises ValueError if the teacher has another vocabulary, image codec or way of reading media than the run, and if stored targets
    are missing, damaged or about something else.
    """
    if config.distill.targets:
        _check_settings(config)
        return lambda step, batch: read_targets(config, step, batch)
    teacher = load_teacher(config, vocabulary, codec) if config.distill.teacher else None
    return lambda step, batch: teacher


def load_teacher(config: TrainConfig, vocabulary: Vocabulary, codec: Codec | None) -> Teacher:
    """The model of `distill.teacher` with weights of type `compute`. Raises ValueError if it does not fit the run."""
    folder = Path(config.distill.teacher)
    model, tokens = load_config(folder)
    words = Vocabulary.load(folder)
    if model.vocab_size != config.model.vocab_size or words.tokenizer.to_str() != vocabulary.tokenizer.to_str():
        raise ValueError(
            f"the teacher {folder} ({model.vocab_size} ids) and the student ({config.model.vocab_size} ids, {config.vocabulary}) differ in"
            f" their vocabulary: give the student the teacher's, vocabulary={folder} and as many ids"
        )
    if codec is not None and not _same_codec(folder, codec):
        raise ValueError(f"the teacher {folder} draws with another image codec than {config.codec}, or does not draw: set codec={folder}")
    for name in config.soft_per_batch:
        theirs, ours = getattr(tokens, name), getattr(config.tokens, name)
        if theirs != ours or name not in {soft.name for soft in model.soft_inputs}:
            raise ValueError(f"the teacher {folder} does not read {name} as the run does: it has {theirs}, the run {ours}")
    return Teacher(load_params(folder, model, jnp.dtype(config.compute)), model)


def _same_codec(folder: Path, codec: Codec) -> bool:
    if not (folder / "codec.json").is_file():
        return False
    theirs = type(codec).load(folder)
    return theirs.config == codec.config and jax.tree.all(jax.tree.map(np.array_equal, theirs.params, codec.params))


def targets_file(folder: Path, seed: int, step: int) -> Path:
    return folder / f"seed-{seed}" / f"step-{step:08}.safetensors"


def settings(config: TrainConfig) -> dict[str, float]:
    """What stored targets depend on besides teacher and batch."""
    return {"top_k": config.distill.top_k, "temperature": config.distill.temperature, "vocab_size": config.model.vocab_size}


def write_settings(folder: Path, config: TrainConfig) -> None:
    """Write FOLDER/targets.json. Raises ValueError if the folder holds targets that were made in another way."""
    folder.mkdir(parents=True, exist_ok=True)
    told = settings(config) | {"teacher": config.distill.teacher}
    if (folder / SETTINGS).is_file() and (before := json.loads((folder / SETTINGS).read_text())) != told:
        raise ValueError(f"{folder} holds targets made with {before}, not {told}: choose another folder")
    write_whole(folder / SETTINGS, json.dumps(told))


def write_targets(folder: Path, seed: int, step: int, batch: Batch, targets: TopK) -> None:
    """Write what a teacher made of the batch of a step, leaves [A, ...]; the file appears when it is complete."""
    path = targets_file(folder, seed, step)
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    arrays = {"ids": np.asarray(targets.ids), "log_probabilities": np.asarray(targets.log_probabilities)}
    save_file(arrays, part, metadata={"batch": fingerprint(batch)})
    part.replace(path)


def read_targets(config: TrainConfig, step: int, batch: Batch) -> TopK:
    """What `write_targets` wrote of this step. Raises ValueError if there is no such file, or it is about another batch."""
    path = targets_file(Path(config.distill.targets), config.seed, step)
    if not path.is_file():
        raise ValueError(f"there are no targets for step {step}: {path} is missing, let `pollux teach` write as many steps as the run has")
    try:
        with safe_open(path, framework="numpy") as file:
            about, targets = file.metadata()["batch"], TopK(file.get_tensor("ids"), file.get_tensor("log_probabilities"))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or incomplete: {error}") from error
    if about != fingerprint(batch):
        raise ValueError(f"{path} is about another batch than step {step} of this run reads: let `pollux teach` read as this run does")
    return targets


def _check_settings(config: TrainConfig) -> None:
    path = Path(config.distill.targets) / SETTINGS
    if not path.is_file():
        raise ValueError(f"{config.distill.targets} holds no targets: it has no {SETTINGS}, which `pollux teach` writes")
    told = json.loads(path.read_text())
    for name, value in settings(config).items():
        if told[name] != value:
            raise ValueError(f"the targets in {config.distill.targets} were made with {name} {told[name]}, and the run has {value}")


def fingerprint(batch: Batch) -> str:
    """The same for batches with the same tokens, documents and targets."""
    digest = hashlib.blake2b(digest_size=16)
    inputs, targets = batch.inputs, batch.targets
    for array in (inputs.ids, inputs.segment, inputs.branch, targets.index, targets.ids, targets.weight):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
