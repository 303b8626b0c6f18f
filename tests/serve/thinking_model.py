"""A small model with random weights that thinks: it is fond of opening thoughts, and less so of closing them. Its words and its chat
template are of the kind that Gemma 4 has."""

import functools

import jax
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from pollux.generate.model import Model
from pollux.generate.sampler import Sampling
from pollux.model.config import AttentionConfig, FeedForwardConfig, LayerConfig, ModelConfig
from pollux.model.params import abstract
from pollux.tokens.config import TokensConfig
from pollux.tokens.template import Template
from pollux.tokens.vocabulary import Vocabulary

SPECIAL = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<|turn>",
    "<turn|>",
    "<|tool_call>",
    "<tool_call|>",
    '<|"|>',
    "<|channel>",
    "<channel|>",
    "<|think|>",
]
OURS = {"<pad>": "<pad>", "<bos>": "<bos>", "<call>": "<|tool_call>", "</call>": "<tool_call|>"}
OURS |= {"<thought>": "<|channel>", "</thought>": "<channel|>"}
TEMPLATE = """<bos>{% if enable_thinking or tools %}<|turn>system
{% if enable_thinking %}<|think|>{% endif %}{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}<turn|>
{% endif %}{% for message in messages %}<|turn>{{ message.role }}
{% for call in message.tool_calls or [] %}<|tool_call>call:{{ call.function.name }}{}<tool_call|>{% endfor %}\
{% for answer in message.tool_responses or [] %}{{ answer.response | tojson }}{% endfor %}\
{% for item in message.content %}{{ item.text }}{% endfor %}<turn|>
{% endfor %}{% if add_generation_prompt %}<|turn>model
{% endif %}"""


def vocabulary() -> Vocabulary:
    """Characters as tokens, bytes for all others, spaces as U+2581."""
    words = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581abcdefghijklmnopqrstuvwxyz0123456789{}[]:,.-\"'\\/<>|!?\n"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True, fuse_unk=False))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    ids = {word: i for i, word in enumerate(words)}
    template = Template(TEMPLATE, {word: ids[word] for word in SPECIAL}, {})
    return Vocabulary(tokenizer, (), {name: ids[theirs] for name, theirs in OURS.items()}, (ids["<eos>"], ids["<turn|>"]), template)


@functools.cache
def thinking_model(calls: float = 0.0) -> Model:
    """calls: how fond it is of opening calls, whatever came before; of thoughts it is at 2.5."""
    words = vocabulary()
    layer = LayerConfig(AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8), FeedForwardConfig(48))
    config = ModelConfig("thinks", words.size, 32, (layer,), num_groups=1, norm="layer", max_positions=1024)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda spec: rng.normal(0, 0.3, spec.shape).astype(np.float32), abstract(config))
    direction = params["final_norm"]["bias"]
    for name, fondness in (("<thought>", 2.5), ("</thought>", 1.6), ("<call>", calls)):
        if not fondness:
            continue
        params["embed"][words.specials[name]] = fondness * direction / np.linalg.norm(direction)
    return Model(params, config, TokensConfig(), words, None, Sampling(temperature=1.0))
