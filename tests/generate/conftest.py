"""A small vocabulary, a picture codec of two flat halves, and decoders with random weights.

Makes the modules beside these tests (judge, walks) importable.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from pollux.generate.model import Model
from pollux.model.config import AttentionConfig, FeedForwardConfig, LayerConfig, ModelConfig
from pollux.model.family import soft_inputs
from pollux.model.params import abstract
from pollux.tokens.config import AudioTokens, ImageTokens, TokensConfig, VideoTokens
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import SPECIAL_IDS, Vocabulary

sys.path.insert(0, str(Path(__file__).parent))

TOKENS = TokensConfig(ImageTokens(8, 8, 16), AudioTokens(), VideoTokens(patch=8, stride=8, max_tokens=4))


class HalvesCodec:
    """The upper and the lower half of a 4x6 picture: a code each, of a brightness digit (4) and a redness digit (3)."""

    levels = (4, 3)
    size = (4, 6)

    def encode(self, pixels):
        halves = pixels.reshape(-1, 2, 2, 6, 3).mean((2, 3))
        return np.stack([halves[..., 1] // 64, halves[..., 0] // 86], -1).astype(np.int32)

    def decode(self, codes):
        green, red = codes[..., 0] * 64 + 32, codes[..., 1] * 86 + 43
        halves = np.stack([red, green, np.zeros_like(red)], -1).astype(np.uint8)
        return np.broadcast_to(halves[:, :, None, None], (*halves.shape[:2], 2, 6, 3)).reshape(-1, 4, 6, 3)


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
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda spec: rng.normal(0, 0.3, spec.shape).astype(np.float32), abstract(config))
        for layer in params["groups"]:
            layer["attention_post_norm"]["scale"] *= 10  # what was read before matters more than the last token
        return Model(params, config, TOKENS, vocabulary, HalvesCodec())

    return make


@pytest.fixture(scope="session")
def model(make_model):
    return make_model()


@pytest.fixture(scope="session")
def biased_to(model):
    """biased_to(special): the same model, but a special token is about as likely as the best other one, whatever came before."""

    def bias(special):
        embed, direction = model.params["embed"].copy(), model.params["final_norm"]["bias"]
        embed[SPECIAL_IDS[special]] = 2.5 * direction / np.linalg.norm(direction)
        return Model(model.params | {"embed": embed}, model.config, TOKENS, model.vocabulary, model.codec)

    return bias
