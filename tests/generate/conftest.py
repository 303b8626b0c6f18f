"""Decoders with random weights around a small vocabulary and a picture codec of two flat halves.

Makes the modules beside these tests (judge, walks) and those beside the tests of the server importable.
"""

import sys
from pathlib import Path

import pytest

from pollux.generate.model import Model
from pollux.model.config import AttentionConfig, FeedForwardConfig, LayerConfig, ModelConfig
from pollux.model.family import soft_inputs
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "serve")]

from small_model import TOKENS, HalvesCodec, leaning_to, random_params  # noqa: E402


@pytest.fixture(scope="session")
def vocabulary():
    tokenizer = train_bpe(["a big red circle is left of the small blue star", "what colour is the circle?"] * 3, 320)
    return Vocabulary(tokenizer, HalvesCodec.levels)


@pytest.fixture(scope="session")
def make_model(vocabulary):
    """make_model(attention settings, layer settings): a model of one layer for each pair of settings."""

    def make(attention=({},), layers=({},)):
        pattern = tuple(
            LayerConfig(AttentionConfig(**{"num_heads": 4, "num_kv_heads": 2, "head_dim": 8} | a), FeedForwardConfig(48), **layer)
            for a, layer in zip(attention, layers, strict=True)
        )
        config = ModelConfig("small", vocabulary.size + 9, 32, pattern, num_groups=1, soft_inputs=soft_inputs(TOKENS), norm="layer")
        return Model(random_params(config), config, TOKENS, vocabulary, HalvesCodec())

    return make


@pytest.fixture(scope="session")
def model(make_model):
    return make_model()


@pytest.fixture(scope="session")
def biased_to(model):
    """biased_to(special): the same model, leaning to a special token."""

    def bias(special):
        return Model(leaning_to(special, model.params), model.config, TOKENS, model.vocabulary, model.codec)

    return bias
