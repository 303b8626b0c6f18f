"""Folders in the layout of Hugging Face transformers: config.json becomes a ModelConfig, tensors find their places in the parameter tree.

Gemma 4 is written here as values of the one config: "unified" (12B), dense with a vision tower (31B), mixture of experts (26B-A4B),
and per-layer embeddings with shared keys and values (E2B, E4B). What this table does not name is refused, not guessed.
Legend: D model, N heads, K kv-heads, H head size, F feed-forward, E experts, P per-layer width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pollux.model.config import AttentionConfig, ExpertsConfig, FeedForwardConfig, LayerConfig, ModelConfig

CONFIG = "config.json"
ARCHITECTURES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")
Change = Literal["same", "transposed", "scalar", "first half", "second half"]


@dataclass(frozen=True)
class Source:
    """Where a tensor of ours lies in a Hugging Face folder: its name and how it is changed on the way in.

    transposed: the last two axes are exchanged. first/second half: of the axis before the last, then transposed. scalar: [1] -> [].
    """

    name: str
    change: Change = "same"

    def read(self, array: np.ndarray) -> np.ndarray:
        """Their tensor -> ours; a view where it can be."""
        if self.change == "same":
            return array
        if self.change == "scalar":
            return array.reshape(())
        if self.change != "transposed":
            half = array.shape[-2] // 2
            array = array[..., :half, :] if self.change == "first half" else array[..., half:, :]
        return array.swapaxes(-1, -2)


def is_folder(path: str | Path) -> bool:
    """Does config.json say "model_type", as transformers writes it?"""
    path = Path(path) / CONFIG
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and "model_type" in data


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of the folder. Raises ValueError for an architecture that is not supported."""
    data = json.loads((Path(folder) / CONFIG).read_text())
    if data["model_type"] not in ARCHITECTURES:
        raise ValueError(f"{folder} holds a model of type {data['model_type']!r}; pollux opens {', '.join(ARCHITECTURES)}")
    return data


def text_config(data: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json about the decoder."""
    return data.get("text_config", data)


def model_config(data: dict[str, Any], name: str) -> ModelConfig:
    """The ModelConfig of a config.json. Raises ValueError naming a setting that has no counterpart."""
    text = text_config(data)
    _refuse(text)
    count, shared = text["num_hidden_layers"], text.get("num_kv_shared_layers", 0)
    kinds = _layer_types(text)
    layers = [_layer(_of_layer(text, kind, i), kind, i >= count - shared) for i, kind in enumerate(kinds)]
    period = _period(layers[: count - shared])
    groups = (count - shared) // period if period else 0
    if shared and groups:
        groups -= 1  # the layers whose keys and values are shared must be in the tail
    per_layer = text.get("hidden_size_per_layer_input") or 0
    return ModelConfig(
        name,
        text["vocab_size"],
        text["hidden_size"],
        tuple(layers[:period]) if groups else (),
        groups,
        tuple(layers[groups * period :]),
        norm_eps=text["rms_norm_eps"],
        tied=text.get("tie_word_embeddings", True),
        logit_soft_cap=text.get("final_logit_softcapping") or 0.0,
        per_layer_width=per_layer,
        per_layer_vocab=text["vocab_size_per_layer_input"] if per_layer else 0,
        max_positions=text["max_position_embeddings"],
    )


def sampling(settings: dict[str, Any]) -> dict[str, Any]:
    """What a generation_config.json says about drawing tokens, in our names. Without do_sample the most probable token is taken."""
    if not settings.get("do_sample", False):
        return {"temperature": 0.0}
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    return {name: settings[name] for name in names if settings.get(name) is not None}


def sources(config: ModelConfig, data: dict[str, Any]) -> dict[str, tuple[Source, ...]]:
    """For each tensor of ours, by name (folder.tensor_name): where it comes from; several sources are stacked on a new first axis.

    A tensor that is missing here has no counterpart and keeps its initial value.
    """
    prefix = "model.language_model." if "text_config" in data else "model."
    found = {name: (Source(prefix + source.name, source.change),) for name, source in _TOP.items()}
    if not config.tied:
        found["unembed"] = (Source("lm_head.weight", "transposed"),)
    for place, indices in _places(config):
        for name, source in _LAYER.items():
            found[f"{place}.{name}"] = tuple(Source(f"{prefix}layers.{i}.{source.name}", source.change) for i in indices)
    return found


def _places(config: ModelConfig) -> Iterator[tuple[str, list[int]]]:
    """Each stack of layers of the parameter tree, with the numbers of its layers."""
    first, step = config.num_groups * len(config.pattern), len(config.pattern)
    for i in range(step if config.num_groups else 0):
        yield f"groups.{i}", list(range(i, first, step))
    for i in range(len(config.tail)):
        yield f"tail.{i}", [first + i]


_TOP = {
    "embed": Source("embed_tokens.weight"),
    "final_norm.scale": Source("norm.weight"),
    "per_layer.embed": Source("embed_tokens_per_layer.weight"),
    "per_layer.project": Source("per_layer_model_projection.weight", "transposed"),
    "per_layer.norm.scale": Source("per_layer_projection_norm.weight"),
}
_LAYER = {
    "attention.q": Source("self_attn.q_proj.weight", "transposed"),
    "attention.k": Source("self_attn.k_proj.weight", "transposed"),
    "attention.v": Source("self_attn.v_proj.weight", "transposed"),
    "attention.o": Source("self_attn.o_proj.weight", "transposed"),
    "attention.q_norm": Source("self_attn.q_norm.weight"),
    "attention.k_norm": Source("self_attn.k_norm.weight"),
    "attention_pre_norm.scale": Source("input_layernorm.weight"),
    "attention_post_norm.scale": Source("post_attention_layernorm.weight"),
    "feed_forward.gate": Source("mlp.gate_proj.weight", "transposed"),
    "feed_forward.up": Source("mlp.up_proj.weight", "transposed"),
    "feed_forward.down": Source("mlp.down_proj.weight", "transposed"),
    "feed_forward_pre_norm.scale": Source("pre_feedforward_layernorm.weight"),
    "feed_forward_post_norm.scale": Source("post_feedforward_layernorm.weight"),
    "experts.router": Source("router.proj.weight", "transposed"),
    "experts.router_scale": Source("router.scale"),
    "experts.expert_scale": Source("router.per_expert_scale"),
    "experts.gate": Source("experts.gate_up_proj", "first half"),
    "experts.up": Source("experts.gate_up_proj", "second half"),
    "experts.down": Source("experts.down_proj", "transposed"),
    "experts.pre_norm": Source("pre_feedforward_layernorm_2.weight"),
    "experts.post_norm": Source("post_feedforward_layernorm_2.weight"),
    "experts.dense_post_norm": Source("post_feedforward_layernorm_1.weight"),
    "per_layer.gate": Source("per_layer_input_gate.weight", "transposed"),
    "per_layer.out": Source("per_layer_projection.weight", "transposed"),
    "per_layer_post_norm.scale": Source("post_per_layer_input_norm.weight"),
    "layer_scale": Source("layer_scalar", "scalar"),
}


def _layer_types(text: dict[str, Any]) -> list[str]:
    kinds = text.get("layer_types") or ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(text["num_hidden_layers"])]
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown:
        raise ValueError(f"layer_types has {', '.join(sorted(unknown))}; pollux knows sliding_attention and full_attention")
    return [*kinds[:-1], "full_attention"]  # as transformers does


def _of_layer(text: dict[str, Any], kind: str, number: int) -> dict[str, Any]:
    """The settings of one layer: those of all with what is said about this one, in the newer form or the older."""
    if "per_layer_config" in text:
        changed = {int(i): settings for i, settings in text["per_layer_config"].items()}.get(number, {})  # "05" is layer 5
    else:
        changed = {"head_dim": text.get("global_head_dim"), "num_key_value_heads": text.get("num_global_key_value_heads")}
        changed = {name: value for name, value in changed.items() if value and kind == "full_attention"}
        if not text.get("attention_k_eq_v"):
            changed.pop("num_key_value_heads", None)
    unknown = set(changed) - {"head_dim", "num_key_value_heads"}
    if unknown:
        raise ValueError(f"config.json changes {', '.join(sorted(unknown))} in layer {number}; pollux knows head_dim and num_key_value_heads")
    return text | changed


def _layer(text: dict[str, Any], kind: str, shares_kv: bool) -> LayerConfig:
    far = kind == "full_attention"
    rope = (text.get("rope_parameters") or _ROPE)[kind]
    if rope["rope_type"] not in ("default", "proportional") or rope.get("factor", 1.0) != 1.0:
        raise ValueError(f"rope_parameters of {kind} are {rope}; pollux knows rope_type default and proportional, without a factor")
    reused = far and text.get("attention_k_eq_v", False)
    attention = AttentionConfig(
        text["num_attention_heads"],
        text["num_key_value_heads"],
        text["head_dim"],
        window=0 if far else text["sliding_window"],
        rope_base=rope["rope_theta"],
        rope_fraction=rope.get("partial_rotary_factor", 1.0) if rope["rope_type"] == "proportional" else 1.0,
        value_norm=True,
        values_reuse_keys=reused,
        scale=1.0,
        two_way=not far and text.get("use_bidirectional_attention") == "vision",
        shares_kv=shares_kv,
    )
    wide = 2 if text.get("use_double_wide_mlp") and shares_kv else 1
    experts = None
    if text.get("enable_moe_block"):
        experts = ExpertsConfig(text["num_experts"], text["top_k_experts"], text["moe_intermediate_size"], separate=True)
    return LayerConfig(attention, FeedForwardConfig(text["intermediate_size"] * wide), experts, layer_scale=True)


_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}


def _refuse(text: dict[str, Any]) -> None:
    """Raises ValueError for what the decoder would compute otherwise."""
    wanted = {"hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": (False, None), "use_bidirectional_attention": ("vision", None)}
    for name, values in wanted.items():
        if text.get(name, values[0]) not in values:
            raise ValueError(f"config.json has {name} = {text[name]!r}; pollux computes {' or '.join(map(repr, values))}")


def _period(layers: list[LayerConfig]) -> int:
    """The shortest pattern whose repetitions, and a rest of it that is shorter, make up the layers."""
    fits = (p for p in range(1, len(layers) + 1) if all(layers[i] == layers[i - p] for i in range(p, len(layers))))
    return next(fits, 0)
