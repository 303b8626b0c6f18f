"""The recipes of the Nano models: the whole training step, teacher included, lowers without memory for weights or data."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from pollux.commands.train import load_recipe
from pollux.model import family
from pollux.model.params import abstract, count
from pollux.tokens.config import TokensConfig
from pollux.tokens.pack import Packer
from pollux.train.distillation import Teacher
from pollux.train.step import initial_state, make_step


@pytest.mark.parametrize(
    ("name", "billions", "teacher"), [("nano_1", 1.8, "flash"), pytest.param("nano_2", 3.25, "pro", marks=pytest.mark.slow)]
)
def test_the_training_step_of_a_nano_student_lowers_for_abstract_shapes(name, billions, teacher, tmp_path):
    tokens = TokensConfig()
    model = family.model(teacher, 256_000, tokens)
    (tmp_path / "config.json").write_text(json.dumps({"model": model.to_json(), "tokens": dataclasses.asdict(tokens)}))
    config = load_recipe(name)(teacher=tmp_path, folders=(tmp_path / "web", tmp_path / "pictures"))
    assert count(config.model) == pytest.approx(billions * 1e9, rel=0.01)
    assert [source.path for source in config.data.sources] == [str(tmp_path / "web"), str(tmp_path / "pictures")]
    one = Packer(config.rows, config.row_length, config.targets_per_row, config.soft_per_batch, config.tokens).take()
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((config.accumulation, *x.shape), x.dtype), one)
    state = jax.eval_shape(lambda: initial_state(config))
    lesson = Teacher(abstract(model, jnp.bfloat16), model)
    step = jax.jit(make_step(config), donate_argnums=0)
    new, metrics = step.lower(state, batch, jax.ShapeDtypeStruct((), jnp.float32), teacher=lesson).out_info
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert set(metrics) >= {"kl", "text", "draw"} and all(x.shape == () for x in metrics.values())
    assert config.steps * config.accumulation * config.row_length == pytest.approx(20 * billions * 1e9, rel=0.02)
