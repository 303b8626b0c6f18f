"""A folder of Gemma 4 is trained further: the loss begins where transformers puts it, falls, and the result opens again.

With LoRA the result is what transformers makes of the same changes to its weights.
"""

import dataclasses

import folders
import numpy as np
import PIL.Image
import pytest
from folders import torch

import pollux
from pollux.commands.train import load_recipe
from pollux.model import low_rank
from pollux.train import loop, metrics
from pollux.train.config import LoraConfig, ScheduleConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("gemma") / "model"
    return path, folders.tower_model(path, "dense", folders.tokenizer())


def test_the_first_loss_is_that_of_transformers(model, tmp_path):
    path, theirs = model
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "story.txt").write_text("once upon a time there was a tokenizer of words and a model of numbers")
    config = load_recipe("tune")(model=path, folder=tmp_path / "data")
    config = dataclasses.replace(config, rows=1, row_length=64, targets_per_row=64, steps=1, log_every=1, samples=0)
    loop.run(config, tmp_path / "run")
    text = (tmp_path / "data" / "story.txt").read_text()
    ids = torch.tensor([[*pollux.load(path).vocabulary.template.start, *pollux.load(path).vocabulary.encode_text(text)]])
    with torch.no_grad():
        logits = theirs(ids).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()
    assert metrics.read(tmp_path / "run")[0]["text"] == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two pictures with captions."""
    data = tmp_path_factory.mktemp("data")
    for i, colour in enumerate(((200, 30, 30), (30, 200, 30))):
        PIL.Image.new("RGB", (60, 50), colour).save(data / f"{i}.png")
        (data / f"{i}.txt").write_text(("all red", "all green")[i])
    return data


@pytest.mark.slow
def test_a_run_on_pictures_learns_resumes_and_opens(model, data, tmp_path):
    path, _ = model
    config = load_recipe("tune")(model=path, folder=data)
    config = dataclasses.replace(
        config,
        rows=1,
        row_length=256,
        targets_per_row=64,
        steps=10,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=3e-3),
        log_every=5,
        samples=0,
    )
    loop.run(config, tmp_path / "run")
    loop.run(dataclasses.replace(config, steps=30), tmp_path / "run", resume=True)
    losses = [line["text"] for line in metrics.read(tmp_path / "run") if "text" in line]
    assert losses[-1] < 0.5 * losses[0]
    tuned = pollux.load(tmp_path / "run" / "model")
    assert tuned.generate([data / "0.png", "what is it?"], max_output_tokens=4).ids.size
    assert np.isfinite(losses).all()


def test_another_model_cannot_be_the_start(model, tmp_path):
    (tmp_path / "a.txt").write_text("words")
    config = load_recipe("tune")(model=model[0], folder=tmp_path)
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, logit_soft_cap=9.0))
    with pytest.raises(ValueError, match="config.json describes another model than the run's"):
        loop.run(wider, tmp_path / "run")


def test_low_rank_training_on_pictures_learns_and_is_what_transformers_makes_of_the_product(data, tmp_path):
    theirs = folders.tower_model(tmp_path / "base", "dense", folders.tokenizer())
    config = load_recipe("tune")(model=tmp_path / "base", folder=data, rank=4)
    assert config.optimizer.learning_rate == 2e-4
    faster = dataclasses.replace(config.optimizer, learning_rate=1e-2)
    targets = LoraConfig(4, targets=("attention", "feed_forward", "soft.image.out"))
    config = dataclasses.replace(config, rows=1, row_length=128, targets_per_row=16, steps=20, optimizer=faster, lora=targets, samples=0)
    loop.run(dataclasses.replace(config, log_every=5, schedule=ScheduleConfig(warmup=2)), tmp_path / "run")
    losses = [line["text"] for line in metrics.read(tmp_path / "run") if "text" in line]
    assert losses[-1] < 0.7 * losses[0]
    tuned = pollux.load(tmp_path / "run" / "model")
    assert tuned.generate([data / "0.png", "what is it?"], max_output_tokens=4).ids.size
    folders.add_products(theirs, tmp_path / "base", tuned.config, *low_rank.load_adapters(tmp_path / "run" / "adapter.safetensors"))
    ids = np.arange(20, 60)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids[None])).logits[0].numpy()
    np.testing.assert_allclose(tuned.logits(ids), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    before = pollux.load(tmp_path / "base")
    assert np.abs(before.logits(ids) - expected).max() > 0.1 * np.abs(expected).max()
    np.testing.assert_array_equal(tuned.params["soft"]["image"]["tower"]["patch"], before.params["soft"]["image"]["tower"]["patch"])
