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

from pollux.model.config import (
    AttentionConfig,
    AudioTower,
    ExpertsConfig,
    FeedForwardConfig,
    FrameTower,
    LayerConfig,
    ModelConfig,
    PatchTower,
    SoftInputConfig,
    VisionTower,
)

CONFIG = "config.json"
ARCHITECTURES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")
MELS = 128  # of the audio tower
Change = Literal["same", "transposed", "scalar", "first half", "second half", "kernel"]


@dataclass(frozen=True)
class Source:
    """Where a tensor of ours lies in a Hugging Face folder: its name and how it is changed on the way in.

    transposed: the last two axes are exchanged. first/second half: of the axis before the last, then transposed. scalar: [1] -> [].
    kernel: [channels, 1, time] -> [time, channels].
    """

    name: str
    change: Change = "same"

    def read(self, array: np.ndarray) -> np.ndarray:
        """Their tensor -> ours; a view where it can be."""
        if self.change == "same":
            return array
        if self.change == "scalar":
            return array.reshape(())
        if self.change == "kernel":
            return array[:, 0].T
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
        soft_inputs=tuple(_soft_inputs(data)),
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
    found = {}
    for soft in config.soft_inputs:
        if soft.tower is not None:
            found |= {f"soft.{soft.name}.{name}": source for name, source in _tower_sources(soft).items()}
    found |= {name: (Source(prefix + source.name, source.change),) for name, source in _TOP.items()}
    if not config.tied:
        found["unembed"] = (Source("lm_head.weight", "transposed"),)
    for place, indices in _places(config):
        for name, source in _LAYER.items():
            found[f"{place}.{name}"] = tuple(Source(f"{prefix}layers.{i}.{source.name}", source.change) for i in indices)
    return found


def _soft_inputs(data: dict[str, Any]) -> Iterator[SoftInputConfig]:
    """The embedders of what the folder has configs for."""
    vision, audio = data.get("vision_config"), data.get("audio_config")
    if vision is not None:
        side = vision["patch_size"] * vision["pooling_kernel_size"]
        features = 3 * side**2
        if vision["model_type"] == "gemma4_unified_vision":
            tower: PatchTower | VisionTower = PatchTower(vision["mm_embed_dim"], vision["mm_posemb_size"])
        else:
            _refuse(vision)
            tower = VisionTower(
                vision["patch_size"],
                vision["pooling_kernel_size"],
                vision["hidden_size"],
                vision["intermediate_size"],
                vision["num_hidden_layers"],
                vision["num_attention_heads"],
                vision["num_key_value_heads"],
                vision["head_dim"],
                (vision.get("rope_parameters") or {}).get("rope_theta", 100.0),
                vision["position_embedding_size"],
                vision.get("standardize", False),
                vision.get("use_clipped_linears", False),
            )
        yield SoftInputConfig("image", features, tower=tower)
    if audio is not None and audio["model_type"] == "gemma4_unified_audio":
        yield SoftInputConfig("audio", audio["audio_embed_dim"], tower=FrameTower())
    elif audio is not None:
        if audio["attention_context_right"] or audio["hidden_act"] != "silu" or audio["subsampling_conv_channels"][0] != MELS:
            raise ValueError(
                "config.json has an audio tower with attention_context_right, another hidden_act than silu or another number of first"
                f" channels than {MELS}, which pollux does not compute"
            )
        tower = AudioTower(
            MELS,
            tuple(audio["subsampling_conv_channels"]),
            audio["hidden_size"],
            audio["num_hidden_layers"],
            audio["num_attention_heads"],
            audio["conv_kernel_size"],
            audio["attention_chunk_size"],
            audio["attention_context_left"],
            audio["attention_logit_cap"],
            audio["residual_weight"],
            audio["output_proj_dims"],
            audio.get("use_clipped_linears", True),
        )
        yield SoftInputConfig("audio", 4 * MELS, tower=tower)


def _tower_sources(soft: SoftInputConfig) -> dict[str, tuple[Source, ...]]:
    """Sources of a tower's parameters and of its projection, by their names below soft.NAME."""
    tower, found = soft.tower, {}
    embedder = "model.embed_audio" if soft.name == "audio" else "model.embed_vision"
    found["out"] = (Source(f"{embedder}.embedding_projection.weight", "transposed"),)
    if isinstance(tower, PatchTower):
        found |= {f"tower.{name}": (Source(f"model.vision_embedder.{source.name}", source.change),) for name, source in _PATCHES.items()}
    elif isinstance(tower, VisionTower):
        found |= {f"tower.{name}": (Source(f"model.vision_tower.{source.name}", source.change),) for name, source in _VISION.items()}
        layers = "model.vision_tower.encoder.layers"
        found |= _layers(layers, tower.num_layers, _with_bounds(_VISION_LAYER, _VISION_LINEARS))
    elif isinstance(tower, AudioTower):
        found |= {f"tower.{name}": (Source(f"model.audio_tower.{source.name}", source.change),) for name, source in _AUDIO.items()}
        found |= _layers("model.audio_tower.layers", tower.num_layers, _with_bounds(_AUDIO_LAYER, _AUDIO_LINEARS))
    return found


def _layers(prefix: str, count: int, layer: dict[str, Source]) -> dict[str, tuple[Source, ...]]:
    return {
        f"tower.layers.{name}": tuple(Source(f"{prefix}.{i}.{source.name}", source.change) for i in range(count))
        for name, source in layer.items()
    }


def _with_bounds(layer: dict[str, Source], linears: dict[str, str]) -> dict[str, Source]:
    """The sources of a layer with those of its linear maps and of the bounds of their inputs and outputs."""
    found = dict(layer)
    for name, theirs in linears.items():
        found[f"{name}.weight"] = Source(f"{theirs}.linear.weight", "transposed")
        found |= {f"{name}.{end}": Source(f"{theirs}.{end}") for end in ("input_min", "input_max", "output_min", "output_max")}
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


_PATCHES = {
    "patch": Source("patch_dense.weight", "transposed"),
    "patch_bias": Source("patch_dense.bias"),
    "positions": Source("pos_embedding"),
    "in_norm.scale": Source("patch_ln1.weight"),
    "in_norm.bias": Source("patch_ln1.bias"),
    "patch_norm.scale": Source("patch_ln2.weight"),
    "patch_norm.bias": Source("patch_ln2.bias"),
    "out_norm.scale": Source("pos_norm.weight"),
    "out_norm.bias": Source("pos_norm.bias"),
}
_VISION = {
    "patch": Source("patch_embedder.input_proj.weight", "transposed"),
    "positions": Source("patch_embedder.position_embedding_table"),
    "mean": Source("std_bias"),
    "inverse_deviation": Source("std_scale"),
}
_VISION_LAYER = {
    "q_norm": Source("self_attn.q_norm.weight"),
    "k_norm": Source("self_attn.k_norm.weight"),
    "attention_pre_norm": Source("input_layernorm.weight"),
    "attention_post_norm": Source("post_attention_layernorm.weight"),
    "feed_forward_pre_norm": Source("pre_feedforward_layernorm.weight"),
    "feed_forward_post_norm": Source("post_feedforward_layernorm.weight"),
}
_VISION_LINEARS = {name: f"self_attn.{name}_proj" for name in "qkvo"} | {name: f"mlp.{name}_proj" for name in ("gate", "up", "down")}
_AUDIO = {
    "halving_0": Source("subsample_conv_projection.layer0.conv.weight"),
    "halving_0_norm": Source("subsample_conv_projection.layer0.norm.weight"),
    "halving_1": Source("subsample_conv_projection.layer1.conv.weight"),
    "halving_1_norm": Source("subsample_conv_projection.layer1.norm.weight"),
    "in": Source("subsample_conv_projection.input_proj_linear.weight", "transposed"),
    "out": Source("output_proj.weight", "transposed"),
    "out_bias": Source("output_proj.bias"),
}
_AUDIO_LAYER = {
    "attention.pre_norm": Source("norm_pre_attn.weight"),
    "attention.post_norm": Source("norm_post_attn.weight"),
    "attention.distance": Source("self_attn.relative_k_proj.weight", "transposed"),
    "attention.head_scale": Source("self_attn.per_dim_scale"),
    "convolution.pre_norm": Source("lconv1d.pre_layer_norm.weight"),
    "convolution.norm": Source("lconv1d.conv_norm.weight"),
    "convolution.kernel": Source("lconv1d.depthwise_conv1d.weight", "kernel"),
    "out_norm": Source("norm_out.weight"),
} | {f"feed_forward_{i}.{place}_norm": Source(f"feed_forward{i}.{place}_layer_norm.weight") for i in (1, 2) for place in ("pre", "post")}
_AUDIO_LINEARS = (
    {f"attention.{name}": f"self_attn.{name}_proj" for name in "qkv"}
    | {"attention.o": "self_attn.post", "convolution.start": "lconv1d.linear_start", "convolution.end": "lconv1d.linear_end"}
    | {f"feed_forward_{i}.{name}": f"feed_forward{i}.ffw_layer_{j}" for i in (1, 2) for j, name in ((1, "up"), (2, "down"))}
)


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
        raise ValueError(
            f"config.json changes {', '.join(sorted(unknown))} in layer {number}; pollux knows head_dim and num_key_value_heads"
        )
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
