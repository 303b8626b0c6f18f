"""A folder of Gemma 4 teaches a small model: what it expects is what transformers computes, of text and of pictures."""

import dataclasses

import folders
import jax
import numpy as np
import PIL.Image
import pytest
from folders import torch
from scipy.special import log_softmax

import pollux
from pollux.commands.train import load_recipe
from pollux.generate.model import Model
from pollux.model import family
from pollux.model.config import ModelConfig
from pollux.model.params import init
from pollux.train import loop, metrics
from pollux.train.config import DistillConfig

TEXT = "once upon a time there was a tokenizer of words and a model of numbers"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("gemma") / "model"
    return path, folders.tower_model(path, "dense", folders.tokenizer())


def student(path, data, **changes):
    """A run of a small model of the family on the teacher's ids and patches."""
    config = load_recipe("tune")(model=path, folder=data)
    inputs = tuple(soft for soft in family.soft_inputs(config.tokens) if soft.name in config.soft_per_batch)
    layers = family.pattern(2, 1, 8, 24, local=1, window=64)
    model = ModelConfig("student", config.model.vocab_size, 16, layers, num_groups=1, soft_inputs=inputs)
    distill = DistillConfig(str(path), weight=1.0, temperature=2.0)
    options = dict(model=model, start="", distill=distill, rows=1, row_length=64, targets_per_row=64, steps=1, log_every=1, samples=0)
    return dataclasses.replace(config, **(options | changes))


def test_the_first_kl_is_that_of_the_logits_of_transformers(teacher, tmp_path):
    path, theirs = teacher
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "story.txt").write_text(TEXT)
    config = student(path, tmp_path / "data")
    loop.run(config, tmp_path / "run")
    words = pollux.load(path).vocabulary
    ids = [*words.template.start, *words.encode_text(TEXT)]
    with torch.no_grad():
        log_p = log_softmax(theirs(torch.tensor([ids])).logits[0, :-1].double().numpy() / 2, -1)
    ours = Model(init(config.model, jax.random.key(0)), config.model)
    log_q = log_softmax(ours.logits(ids)[:-1].astype(np.float64) / 2, -1)
    assert metrics.read(tmp_path / "run")[0]["kl"] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(-1).mean(), rel=1e-4)


@pytest.mark.slow
def test_a_student_comes_closer_to_its_teacher_on_pictures(teacher, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for i, colour in enumerate(((200, 30, 30), (30, 200, 30))):
        PIL.Image.new("RGB", (60, 50), colour).save(data / f"{i}.png")
        (data / f"{i}.txt").write_text(("all red", "all green")[i])
    config = student(teacher[0], data, row_length=256, steps=100, log_every=10)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=3e-3)
    loop.run(dataclasses.replace(config, optimizer=optimizer), tmp_path / "run")
    kl = [line["kl"] for line in metrics.read(tmp_path / "run") if "kl" in line]
    assert kl[-1] < 0.5 * kl[0]
