"""The Model object: folders, logits, embeddings, counts, chats, and one clear sentence for each mistake."""

import json

import numpy as np
import PIL.Image
import pytest

import pollux
from pollux.content import Audio, Content, Image, Text
from pollux.generate.chat import Chat
from pollux.generate.model import Model
from pollux.generate.sampler import Sampling
from pollux.model import folder
from pollux.tokens.codec import Codec, CodecConfig
from pollux.tokens.vocabulary import SPECIAL_IDS

SHORT = dict(seed=2, max_output_tokens=30)


@pytest.fixture(scope="module")
def picture():
    return PIL.Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8))


def test_a_saved_folder_gives_the_same_model_back(model, tmp_path, picture):
    kept = Model(model.params, model.config, model.tokens_config, model.vocabulary, None, Sampling(top_k=3, stop=("zz",)))
    kept.vocabulary.code_levels, levels = (), kept.vocabulary.code_levels
    kept.save(tmp_path)
    kept.vocabulary.code_levels = levels
    loaded = pollux.load(tmp_path)
    assert folder.hash_params(loaded.params) == folder.hash_params(model.params)
    assert (loaded.config, loaded.tokens_config, loaded.sampling) == (model.config, model.tokens_config, kept.sampling)
    np.testing.assert_array_equal(loaded.prompt([picture, "the star"]).ids, model.prompt([picture, "the star"]).ids)
    assert loaded.vocabulary.decode(loaded.prompt("the star").ids) == model.vocabulary.decode(model.prompt("the star").ids)
