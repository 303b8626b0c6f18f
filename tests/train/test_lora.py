"""LoRA: what gets adapters, that they alone are trained and kept, and that the merged model is the trained one."""

from __future__ import annotations

import dataclasses
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import short_run
from random_batch import TOKENS, random_batch, small_model, stack
from safetensors.numpy import load_file

import pollux
from pollux.model import decoder, folder, low_rank
from pollux.model import params as model_params
from pollux.model.config import AttentionConfig, ExpertsConfig, FeedForwardConfig, LayerConfig, SoftInputConfig
from pollux.model.family import tiny
from pollux.shrink.quantize import quantize
from pollux.tokens.vocabulary import Vocabulary
from pollux.train import loop, lora, metrics
from pollux.train.config import LoraConfig, OptimizerConfig
from pollux.train.step import initial_state, make_step

ATTENTION = AttentionConfig(2, 1, 8)


def moved(model, config, seed=0):
    """Random adapters, the second factor too, which training begins at 0."""
    specs = lora.adapters(model, config)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape, scale=0.2), jnp.float32), specs, is_leaf=model_params.is_spec)


@pytest.mark.parametrize(
    "model",
    [
        small_model(
            pattern=(LayerConfig(ATTENTION, FeedForwardConfig(24), parallel=True),), tail=(LayerConfig(ATTENTION, FeedForwardConfig(24)),)
        ),
        small_model(
            pattern=(LayerConfig(dataclasses.replace(ATTENTION, bias=True), FeedForwardConfig(24), cross_attention=ATTENTION),),
            norm="layer",
            soft_inputs=(SoftInputConfig("image", TOKENS.image.features, hidden=8),),
        ),
    ],
    ids=["parallel, with a tail", "cross-attention, biases, layer norm"],
)
def test_a_model_with_adapters_is_that_with_the_weights_of_the_formula(model):
    targets = ("attention", "feed_forward", "soft") + (("cross_attention",) if model.norm == "layer" else ())
    config = LoraConfig(3, 4.5, targets)
    params = jax.jit(lambda key: jax.tree.map(lambda x: x + 0.1, model_params.init(model, key)))(jax.random.key(0))  # gates are open
    adapters = moved(model, config)
    changed = {
        name: array.astype(np.float64)
        + (1.5 * np.float64(adapters[name]["a"]) @ np.float64(adapters[name]["b"]) if name in adapters else 0)
        for name, array in folder.named(params).items()
    }
    expected = jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(changed[folder.tensor_name(path)], jnp.float32), params)
    inputs = random_batch().inputs

    @jax.jit
    def logits(params):
        return decoder.logits(params, model, decoder.hidden(params, model, inputs).hidden)

    attached = low_rank.attach(params, adapters, config.scale)
    size = float(jnp.abs(logits(expected)).max())
    np.testing.assert_allclose(logits(attached), logits(expected), atol=1e-5 * size)
    np.testing.assert_allclose(logits(low_rank.merge(attached)), logits(expected), atol=1e-5 * size)
    assert float(jnp.abs(logits(params) - logits(expected)).max()) > 0.05 * size


def test_what_gets_adapters():
    def names(model, *targets):
        return {name.removeprefix("groups.0.") for name in lora.adapters(model, LoraConfig(2, targets=targets))}

    assert names(small_model(), "attention", "feed_forward") == {f"attention.{x}" for x in "qkvo"} | {
        f"feed_forward.{x}" for x in ("gate", "up", "down")
    }
    assert names(small_model(), "attention.q", "soft.image") == {"attention.q", "soft.image.out"}
    assert names(tiny(), "soft.audio") == {"soft.audio.hidden", "soft.audio.out"}
    routed = small_model(pattern=(LayerConfig(ATTENTION, FeedForwardConfig(24), ExpertsConfig(4, 2, 8)),))
    with pytest.raises(ValueError, match=r"names 'experts', but experts cannot have adapters; there are attention.k, attention.o, "):
        names(routed, "attention", "experts")
    with pytest.raises(ValueError, match="names 'embed', but no linear map's path begins so"):
        names(small_model(), "embed")
    assert not any("expert" in name for name in names(routed, "feed_forward"))


@pytest.fixture(scope="module")
def home(home):
    """Texts, vocabulary and a model of bfloat16 weights to begin with."""
    model = short_run.config(home).model
    folder.save(home / "base", model_params.init(model, jax.random.key(5), jnp.bfloat16), model)
    Vocabulary.load(home).save(home / "base")
    return home


def run_config(home, **changes):
    options = dict(
        start=str(home / "base"), lora=LoraConfig(4), optimizer=OptimizerConfig("adamw", learning_rate=1e-2), steps=24, keep_checkpoints=9
    )
    return short_run.config(home, **(options | changes))


@pytest.fixture(scope="module")
def tuned(home):
    """OUT of a run, and what its base was before it."""
    before = load_file(home / "base" / "model.safetensors")
    loop.run(run_config(home, checkpoint_every=6), home / "tuned")
    return home / "tuned", before


def test_the_loss_falls_and_only_adapted_weights_move_by_their_product(home, tuned):
    out, before = tuned
    held_out = [line["held_out_text"] for line in metrics.read(out) if "held_out_text" in line]
    assert held_out[-1] < held_out[0] - 0.3
    after, adapters = load_file(out / "model" / "model.safetensors"), load_file(out / "adapter.safetensors")
    adapted = {name[:-2] for name in adapters}
    assert len(adapted) == 7 and set(after) == set(before)
    for name, array in load_file(home / "base" / "model.safetensors").items():
        np.testing.assert_array_equal(array, before[name])
        if name not in adapted:
            assert after[name].dtype == array.dtype
            np.testing.assert_array_equal(after[name], array)
        else:
            exact = np.float64(array) + 4.0 * np.float64(adapters[f"{name}.a"]) @ np.float64(adapters[f"{name}.b"])
            assert np.all(np.abs(np.float64(after[name]) - exact) <= np.abs(exact) * 2.0**-8 * 1.01)
            assert not np.array_equal(after[name], array)


def test_the_state_of_a_run_holds_adapters_alone(home, tuned):
    config = run_config(home)
    base = load_file(home / "base" / "model.safetensors")
    adapted = {name[:-2] for name in load_file(tuned[0] / "adapter.safetensors")}
    numbers = sum(base[name].shape[0] * 4 * sum(base[name].shape[1:]) for name in adapted)
    state = jax.eval_shape(lambda: initial_state(config))
    floats = [x for x in jax.tree.leaves(state) if x.shape]
    assert sum(math.prod(x.shape) for x in floats) == 4 * numbers, "adapters, two moments, average"
    with loop.closing(loop.Checkpoints(tuned[0] / "checkpoints", 9)) as checkpoints:
        restored, _ = checkpoints.restore(24, state)
    written = load_file(tuned[0] / "adapter.safetensors")
    for name, array in folder.named(restored.ema).items():
        np.testing.assert_array_equal(array, written[name])


def test_a_run_resumes_bit_for_bit(home, tuned, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(tuned[0], out)
    shutil.rmtree(out / "model")
    for step in (18, 24):
        shutil.rmtree(out / "checkpoints" / str(step))
    loop.run(run_config(home, checkpoint_every=6), out, resume=True)
    for file in ("model/model.safetensors", "adapter.safetensors"):
        assert (out / file).read_bytes() == (tuned[0] / file).read_bytes()
    with pytest.raises(ValueError, match="--resume needs the lora.rank that the run began with: 4, not 8"):
        loop.run(run_config(home, lora=LoraConfig(8)), out, resume=True)


def test_the_base_opens_with_the_adapter(home, tuned):
    ids = list(range(60, 80))
    merged, base = pollux.load(tuned[0] / "model"), pollux.load(home / "base")
    with_adapter = pollux.load(home / "base", adapter=tuned[0] / "adapter.safetensors")
    np.testing.assert_array_equal(with_adapter.logits(ids), merged.logits(ids))
    assert np.abs(base.logits(ids) - merged.logits(ids)).max() > 0.1


def test_adapters_need_a_model_to_adapt(home):
    with pytest.raises(ValueError, match="lora.rank needs a model to adapt: start must name its folder"):
        run_config(home, start="")


def test_the_backward_pass_reads_frozen_weights_as_they_are_stored(home):
    config = run_config(home, accumulation=1)
    batch = random_batch()
    batch = stack(dataclasses.replace(batch, inputs=dataclasses.replace(batch.inputs, soft={})))
    base = model_params.abstract(config.model, jnp.bfloat16)
    state = jax.eval_shape(lambda: initial_state(config))
    program = jax.jit(make_step(config)).lower(state, batch, np.float32(1), base).as_text()
    assert "tensor<2x16x24xbf16>" in program and "tensor<2x16x24xf32>" not in program, "a copy of all layers waits for it"


def test_adapters_are_trained_beside_weights_of_4_bits_and_merged_with_their_values(home, tmp_path):
    quantised = quantize(pollux.load(home / "base"), 4, "nearest")
    quantised.save(tmp_path / "base")
    start = str(tmp_path / "base")
    with pytest.raises(ValueError, match=r"quantised weights cannot be trained: train adapters beside them \(lora.rank\)"):
        loop.run(run_config(home, start=start, lora=LoraConfig()), tmp_path / "full")
    loop.run(run_config(home, start=start), tmp_path / "run")
    held_out = [line["held_out_text"] for line in metrics.read(tmp_path / "run") if "held_out_text" in line]
    assert held_out[-1] < held_out[0] - 0.3
    before, after, adapters = (
        load_file(tmp_path / name) for name in ("base/model.safetensors", "run/model/model.safetensors", "run/adapter.safetensors")
    )
    leaf = quantised.params["groups"][0]["attention"]["q"]
    exact = np.float64(leaf.dense(jnp.float32)) + 4.0 * np.float64(adapters["groups.0.attention.q.a"]) @ np.float64(
        adapters["groups.0.attention.q.b"]
    )
    merged = after["groups.0.attention.q"]
    assert merged.dtype == jnp.bfloat16, "that of the norms"
    assert np.all(np.abs(np.float64(merged) - exact) <= np.abs(exact) * 2.0**-8 * 1.01)
    np.testing.assert_array_equal(after["embed.q4"], before["embed.q4"])
    assert np.isfinite(pollux.load(tmp_path / "run" / "model").logits([60, 61, 62])).all()
