import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pollux.model import family, folder, params
from pollux.model.config import AttentionConfig, ExpertsConfig, FeedForwardConfig, LayerConfig, ModelConfig
from pollux.tokens.config import ImageTokens, TokensConfig


@pytest.fixture(scope="module")
def small() -> tuple[ModelConfig, dict]:
    layer = LayerConfig(AttentionConfig(2, 1, 4), FeedForwardConfig(8), ExpertsConfig(2, 1, 4), layer_scale=True)
    config = ModelConfig("small", 11, 6, (layer,), 2, (layer,), tied=False)
    return config, params.init(config, jax.random.key(0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_saved_folder_loads_as_the_same_model(small, tmp_path, dtype):
    config, weights = small[0], jax.tree.map(lambda w: w.astype(dtype), small[1])
    tokens = TokensConfig(image=ImageTokens(patch=8, stride=4, max_tokens=9))
    folder.save(tmp_path, weights, config, tokens)
    assert folder.load_config(tmp_path) == (config, tokens)
    loaded = folder.load_params(tmp_path, config)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), loaded) == jax.tree.map(lambda a: (a.shape, a.dtype), weights)
    assert folder.hash_params(loaded) == folder.hash_params(weights)


def test_loading_tells_which_share_of_the_weights_is_there(small, tmp_path):
    folder.save(tmp_path, small[1], small[0])
    shares: list[float] = []
    folder.load_params(tmp_path, small[0], progress=shares.append)
    assert len(shares) == len(jax.tree.leaves(small[1])) and shares == sorted(shares) and shares[-1] == 1


def test_large_weights_are_written_in_shards_with_an_index(small, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "SHARD_BYTES", 700)
    folder.save(tmp_path, small[1], small[0])
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 and not (tmp_path / "model.safetensors").exists()
    assert folder.hash_params(folder.load_params(tmp_path, small[0])) == folder.hash_params(small[1])


PROGRAM = """
import sys, jax, jax.numpy as jnp
from pollux.model import folder
config = folder.load_config(sys.argv[1])[0]
jnp.zeros(8).block_until_ready()
def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
open("/proc/self/clear_refs", "w").write("5")  # the highest mark begins anew
before = memory("VmRSS")
weights = jax.block_until_ready(folder.load_params(sys.argv[1], config))
print((memory("VmHWM") - before) / sum(x.nbytes for x in jax.tree.leaves(weights)))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the highest mark of a part of a program")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "SHARD_BYTES", 16 * 2**20)
    layer = LayerConfig(AttentionConfig(4, 4, 128), FeedForwardConfig(2048))
    config = ModelConfig("wide", 1000, 512, (layer,), 8)
    folder.save(tmp_path, jax.tree.map(lambda spec: np.zeros(spec.shape, np.float32), params.abstract(config)), config)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) < 1.1


def test_a_model_in_one_file_replaces_one_in_shards(small, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "SHARD_BYTES", 700)
    folder.save(tmp_path, small[1], small[0])
    monkeypatch.undo()
    other = params.init(small[0], jax.random.key(1))
    folder.save(tmp_path, other, small[0])
    assert folder.hash_params(folder.load_params(tmp_path, small[0])) == folder.hash_params(other)


def test_a_config_with_an_unknown_kind_of_layer_is_refused(small):
    with pytest.raises(ValueError, match="activation 'swish' must be one of gelu, silu, relu, relu2"):
        FeedForwardConfig(8, "swish")
    with pytest.raises(ValueError, match="activation 'swish' must be one of"):
        ExpertsConfig(2, 1, 4, "swish")
    with pytest.raises(ValueError, match="norm 'batch' must be 'rms' or 'layer'"):
        dataclasses.replace(small[0], norm="batch")
    with pytest.raises(ValueError, match="num_kv_heads 0, which must be at least 1"):
        AttentionConfig(2, 0, 4)


def test_the_hash_changes_with_any_bit(small):
    changed = jax.tree.map(lambda w: w, small[1])
    changed["embed"] = changed["embed"].at[3, 2].set(np.nextafter(np.float32(changed["embed"][3, 2]), np.float32(9)))
    assert folder.hash_params(changed) != folder.hash_params(small[1])


def test_a_missing_or_misshapen_tensor_is_named(small, tmp_path):
    folder.save(tmp_path, small[1], small[0])
    with pytest.raises(ValueError, match="tensor embed .* has shape"):
        folder.load_params(tmp_path, dataclasses.replace(small[0], vocab_size=12))
    with pytest.raises(ValueError, match="no tensor groups.0.attention.q_norm|no tensor soft|no tensor tail.1"):
        folder.load_params(tmp_path, dataclasses.replace(small[0], tail=small[0].tail * 2))
    with pytest.raises(ValueError, match="no config.json"):
        folder.load_config(tmp_path / "absent")


def test_an_unknown_field_in_the_config_is_named(small, tmp_path):
    folder.save(tmp_path, small[1], small[0])
    data = json.loads((tmp_path / "config.json").read_text())
    data["model"]["pattern"][0]["attention"]["magic"] = 1
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"config.json: AttentionConfig has no field magic"):
        folder.load_config(tmp_path)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("config.json", lambda data: b"{", "config.json is damaged"),
        ("config.json", lambda data: b"[]", "no 'model' entry"),
        (
            "config.json",
            lambda data: b'{"model": {"name": "x"}}',
            "config.json: ModelConfig lacks vocab_size, d_model, num_groups",
        ),
        ("model.safetensors", lambda data: data[: len(data) // 2], "model.safetensors is damaged or incomplete"),
        ("model.safetensors", lambda data: b"", "model.safetensors is damaged or incomplete"),
    ],
)
def test_a_damaged_file_is_named(small, tmp_path, file, damage, message):
    folder.save(tmp_path, small[1], small[0])
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    with pytest.raises(ValueError, match=message):
        folder.load_params(tmp_path, folder.load_config(tmp_path)[0])


def test_count_is_the_size_of_the_initialised_parameters(small):
    assert params.count(small[0]) == sum(w.size for w in jax.tree.leaves(small[1])) == sum(params.count_by_part(small[0]).values())


def test_nano_sizes_are_the_published_ones():
    assert params.count(family.nano_1()) == pytest.approx(1.8e9, rel=0.02)
    assert params.count(family.nano_2()) == pytest.approx(3.25e9, rel=0.02)
    assert params.count(family.mini()) == pytest.approx(60e6, rel=0.1)


def test_flops_per_token_count_every_product():
    layer = LayerConfig(AttentionConfig(2, 1, 4, window=3), FeedForwardConfig(8))
    config = ModelConfig("small", 11, 6, (layer,), 2)
    products = 2 * 6 * 8 + 2 * 2 * 6 * 4 + 2 * 8 * 6 + 3 * 2 * 6 * 8  # q, k and v, o, gated feed-forward
    scores = 2 * 2 * 3 * 2 * 4  # q k and p v over a window of 3, two heads of 4
    assert params.flops_per_token(config, context=100) == 2 * (products + scores) + 2 * 6 * 11


def test_kv_bytes_count_global_and_local_layers_apart():
    local = LayerConfig(AttentionConfig(4, 1, 8, window=16), FeedForwardConfig(8))
    full = LayerConfig(AttentionConfig(4, 2, 8), FeedForwardConfig(8))
    config = ModelConfig("small", 11, 6, (local, full), 3)
    assert params.kv_bytes_per_token(config) == {"local": 3 * 2 * 8 * 2, "global": 3 * 2 * 2 * 8 * 2}


def test_initial_values_of_a_parameter_do_not_depend_on_the_others():
    one = params.init(family.tiny(64), jax.random.key(0))
    other = params.init(dataclasses.replace(family.tiny(64), soft_inputs=()), jax.random.key(0))
    np.testing.assert_array_equal(one["groups"][0]["attention"]["q"], other["groups"][0]["attention"]["q"])
    std = float(jnp.std(one["groups"][0]["feed_forward"]["down"]))
    assert std == pytest.approx(512**-0.5, rel=0.05)


@pytest.mark.parametrize("change", [{"window": 4}, {"log_n_native": 8}, {"gaussian_prior": True}])
def test_cross_attention_refuses_what_it_would_ignore(change):
    cross = dataclasses.replace(AttentionConfig(2, 1, 4), **change)
    with pytest.raises(ValueError, match="cross_attention sees all soft tokens"):
        LayerConfig(AttentionConfig(2, 1, 4), FeedForwardConfig(8), cross_attention=cross)
