"""Folders of Gemma 4 with weights of 8 bits: they load again and give nearly the logits that transformers gives."""

import folders
import numpy as np
import pytest
from folders import torch

import pollux
from pollux.model.folder import hash_params
from pollux.model.quantized import Quantized
from pollux.shrink.quantize import quantize


@pytest.mark.parametrize("kind", ["per-layer", "experts"])
def test_a_quantised_folder_gives_nearly_the_logits_of_transformers(kind, tmp_path):
    theirs = folders.tower_model(tmp_path / "theirs", kind, folders.tokenizer())
    quantized = quantize(pollux.load(tmp_path / "theirs"), 8, "nearest")
    quantized.save(tmp_path / "ours")
    ours = pollux.load(tmp_path / "ours")
    assert hash_params(ours.params) == hash_params(quantized.params) and isinstance(ours.params["embed"], Quantized)
    ids = np.arange(20, 60)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids[None])).logits[0].numpy()
    error = np.linalg.norm(ours.logits(ids) - expected) / np.linalg.norm(expected)
    assert error < 0.25  # random weights make much of small errors; a matrix in the wrong place gives 1 and more


def test_activations_keep_the_dtype_of_the_weights_where_norms_have_another(tmp_path):
    model = folders.third_model(tmp_path / "half")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert "bfloat16" in repr(pollux.load(tmp_path / "half"))
