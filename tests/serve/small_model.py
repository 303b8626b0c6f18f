"""A small model with random weights that reads everything and draws, and an engine that runs it."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from pollux.generate.engine import Engine
from pollux.generate.model import Model
from pollux.generate.sampler import Sampling
from pollux.generate.settings import EngineSettings
from pollux.model.config import AttentionConfig, FeedForwardConfig, LayerConfig, ModelConfig
from pollux.model.family import soft_inputs
from pollux.model.params import abstract
from pollux.tokens.codec.codec import Codec
from pollux.tokens.codec.config import CodecConfig
from pollux.tokens.codec.model import init
from pollux.tokens.config import AudioTokens, ImageTokens, TokensConfig, VideoTokens
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import SPECIAL_IDS, Vocabulary

TOKENS = TokensConfig(ImageTokens(8, 8, 16), AudioTokens(), VideoTokens(patch=8, stride=8, max_tokens=4))
LIMIT = 512  # tokens of a prompt and its answer


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


@functools.cache
def small_model(likely: str = "", can_be_saved: bool = False) -> Model:
    """likely: a special token that it leans to. can_be_saved: with a codec of the usual kind."""
    codec = random_codec() if can_be_saved else HalvesCodec()
    tokenizer = train_bpe(["a big red circle is left of the small blue star", '{"name": "what colour is it?", "size": 12}'] * 3, 320)
    vocabulary = Vocabulary(tokenizer, codec.levels)
    layer = LayerConfig(AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8), FeedForwardConfig(48))
    inputs = soft_inputs(TOKENS)
    config = ModelConfig("small", vocabulary.size, 32, (layer,), num_groups=1, soft_inputs=inputs, norm="layer", max_positions=LIMIT)
    params = random_params(config)
    if likely:
        params = leaning_to(likely, params)
    return Model(params, config, TOKENS, vocabulary, codec, Sampling(temperature=0.0))


def random_params(config: ModelConfig) -> dict:
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda spec: rng.normal(0, 0.3, spec.shape).astype(np.float32), abstract(config))
    for layer in params["groups"]:
        layer["attention_post_norm"]["scale"] *= 10  # what was read before matters more than the last token
    return params


def leaning_to(special: str, params: dict) -> dict:
    """The same, but the model is about as likely to write a special token as the best other one, whatever came before."""
    embed, direction = params["embed"].copy(), params["final_norm"]["bias"]
    embed[SPECIAL_IDS[special]] = 2.5 * direction / np.linalg.norm(direction)
    return params | {"embed": embed}


def random_codec() -> Codec:
    config = CodecConfig(size=(4, 8), patch=4, window=4, form_levels=(4,), colour_levels=(4,), hidden=8, layers=1)
    return Codec(config, init(config, 0))


def small_folder(path: Path) -> Path:
    """A folder of such a model for `pollux serve`."""
    small_model(can_be_saved=True).save(path)
    return path


@contextlib.contextmanager
def running(model: Model) -> Iterator[Engine]:
    engine = Engine(model.params, model.config, model.vocabulary, model.codec, settings=EngineSettings(max_rows=4, chunk=64))
    engine.start()
    try:
        yield engine
    finally:
        engine.close(drain=0)
