"""What pollux writes, transformers opens with equal logits; what Gemma 4 cannot compute is refused by name."""

import dataclasses

import folders
import jax
import numpy as np
import pytest
from folders import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import pollux
from pollux.cli import main
from pollux.generate.model import Model
from pollux.model import params
from pollux.model.config import AttentionConfig, FeedForwardConfig, LayerConfig, ModelConfig, SoftInputConfig
from pollux.model.family import pattern
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary


def tensors(folder):
    with safe_open(folder / "model.safetensors", "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


@pytest.mark.parametrize("kind", [*folders.TEXTS, *folders.TOWERS, "unified"])
def test_a_folder_of_transformers_comes_back_with_equal_tensors(kind, tmp_path, capsys):
    made = folders.tokenizer()
    there, back = tmp_path / "there", tmp_path / "back"
    if kind in folders.TEXTS:
        folders.text_model(there, **folders.TEXTS[kind])
    elif kind in folders.TOWERS:
        folders.tower_model(there, kind, made)
    else:
        folders.unified_model(there, made)
    assert main(["export", str(there), "--to", "hf", "--out", str(back)]) == 0, capsys.readouterr().err
    first, second = tensors(there), tensors(back)
    assert set(first) == set(second)
    for name, array in first.items():
        assert array.dtype == second[name].dtype and array.tobytes() == second[name].tobytes(), name
    assert pollux.load(back).config == dataclasses.replace(pollux.load(there).config, name="back")


def test_a_model_of_the_family_opens_in_transformers_with_equal_logits(tmp_path):
    words = Vocabulary(train_bpe(["a small text for a small tokeniser, with some words in it"] * 3, 320))
    block = pattern(4, 1, 8, 24, local=2, window=6, native=64)
    config = ModelConfig("own", words.size, 32, block, num_groups=2, max_positions=64)
    weights = jax.tree.map(lambda x: x * 1.1 + 0.01, params.init(config, jax.random.key(0)))
    own = Model(weights, config, vocabulary=words)
    own.save(tmp_path / "own")
    assert main(["export", str(tmp_path / "own"), "--out", str(tmp_path / "theirs")]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "some words"}], add_generation_prompt=True, return_dict=False)
    assert ids == own.prompt("some words").ids.tolist()
    long = np.random.default_rng(0).integers(23, words.size, 60)
    with torch.no_grad():
        expected = theirs(torch.tensor(long[None])).logits[0].numpy()
    np.testing.assert_allclose(own.logits(long), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


ATTENTION = AttentionConfig(2, 1, 4, value_norm=True)
LAYER = LayerConfig(ATTENTION, FeedForwardConfig(8))


@pytest.mark.parametrize(
    ("changes", "feature"),
    [
        (dict(parallel=True), "parallel attention and feed-forward"),
        (dict(feed_forward=FeedForwardConfig(8, "relu2", gated=False)), "a feed-forward other than a gated GELU"),
        (dict(attention=AttentionConfig(2, 1, 4)), "values that are not normalised"),
        (dict(attention=dataclasses.replace(ATTENTION, soft_cap=3.0)), "a soft_cap on the scores"),
        (dict(attention=dataclasses.replace(ATTENTION, window=4)), "a local last layer"),
    ],
)
def test_what_gemma_cannot_compute_is_refused_by_name(changes, feature, tmp_path, capsys):
    config = ModelConfig("own", 40, 8, (dataclasses.replace(LAYER, **changes),), num_groups=1)
    Model(params.init(config, jax.random.key(0)), config).save(tmp_path / "own")
    assert main(["export", str(tmp_path / "own"), "--out", str(tmp_path / "theirs")]) == 2
    assert f"Gemma 4 has no place for {feature}" in capsys.readouterr().err


def test_an_embedder_of_ours_is_refused_by_name():
    config = ModelConfig("own", 40, 8, (LAYER,), num_groups=1, soft_inputs=(SoftInputConfig("image", 12),))
    with pytest.raises(ValueError, match=r"no place for the input for image \(no tower\)"):
        from pollux.model.huggingface import config_json

        config_json(config, {})
