"""Quantisation-aware training: what a step reads is what `pollux quantize` writes, and what it learns are the weights behind it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import short_run
from random_batch import TOKENS, random_batch, small_model, stack

import pollux
from pollux.data.mixture import DataConfig, SourceConfig
from pollux.generate.model import Model
from pollux.model import folder
from pollux.model import params as model_params
from pollux.model.family import tiny
from pollux.model.quantized import Quantized
from pollux.model.rounding import rounded
from pollux.shrink.quantize import quantize
from pollux.train import loop, metrics
from pollux.train.config import TrainConfig
from pollux.train.step import _gradient


def dense(model: Model) -> dict[str, np.ndarray]:
    """The values of a quantised model by name; an embedding table as [V, D] again."""

    def leaf(path, weight):
        if not isinstance(weight, Quantized):
            return weight
        return weight.dense().T if folder.tensor_name(path) == "embed" else weight.dense()

    return folder.named(jax.tree_util.tree_map_with_path(leaf, model.params, is_leaf=lambda leaf: isinstance(leaf, Quantized)))


@pytest.mark.parametrize("bits", [4, 8])
def test_rounded_weights_are_those_of_the_quantised_model(bits):
    config = tiny(100)
    params = model_params.init(config, jax.random.key(0))
    ours, expected = folder.named(rounded(params, config, bits)), dense(quantize(Model(params, config), bits, "nearest"))
    assert ours.keys() == expected.keys()
    for name, array in ours.items():
        off = np.abs(array - expected[name]) > 1e-6 * np.abs(expected[name]).max()
        assert off.mean() < 1e-3, name  # a tie may round either way
    different = [name for name, array in folder.named(params).items() if not np.allclose(array, ours[name], atol=1e-7)]
    assert "embed" in different and "groups.0.feed_forward.up" in different and "final_norm.scale" not in different


def test_a_step_moves_the_weights_by_the_gradient_at_the_rounded_ones():
    model = small_model()
    plain = TrainConfig(model, TOKENS, DataConfig((SourceConfig("world", "picture"),)), "vocabulary", steps=1, targets_per_row=12)
    batch = stack(random_batch())
    params = jax.jit(lambda: model_params.init(model, jax.random.key(0)))()

    def gradient(config):
        return jax.jit(lambda params: _gradient(params, None, config, batch, None)[0])

    through, straight = gradient(dataclasses.replace(plain, weight_bits=4))(params), gradient(plain)
    expected, elsewhere = straight(rounded(params, model, 4)), straight(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), through, expected)
    assert not np.allclose(through["embed"], elsewhere["embed"], rtol=1e-2, atol=1e-4)


def test_a_run_in_few_bits_reports_the_loss_of_the_quantised_model(home, tmp_path):
    config = short_run.config(home, steps=24, weight_bits=4)
    model = pollux.load(loop.run(config, tmp_path / "run"))
    reported = [line for line in metrics.read(tmp_path / "run") if "held_out_text" in line][-1]["held_out_text"]

    def loss(params):
        plain = dataclasses.replace(config, weight_bits=0, start=str(tmp_path / "start"), steps=1, optimizer=frozen)
        folder.save(tmp_path / "start", params, config.model, config.tokens)
        loop.run(plain, tmp_path / f"of {len(list(tmp_path.iterdir()))}")
        return metrics.read(sorted(tmp_path.glob("of *"))[-1])[-1]["held_out_text"]

    kept = tuple(name for name, part in model.params.items() if jax.tree.leaves(part) and name != "log_temperature")
    frozen = dataclasses.replace(config.optimizer, frozen=kept)
    values = dense(quantize(model, 4, "nearest"))
    quantised = jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(values[folder.tensor_name(path)]), model.params)
    assert reported == pytest.approx(loss(quantised), abs=5e-4)
    assert abs(reported - loss(model.params)) > 2e-3


def test_adapters_and_rounding_exclude_each_other(home):
    with pytest.raises(ValueError, match="train adapters .* beside a quantised folder"):
        short_run.config(home, start="x", weight_bits=4, lora=loop.lora.LoraConfig(2))
    with pytest.raises(ValueError, match="weight_bits 3 must be"):
        short_run.config(home, weight_bits=3)
