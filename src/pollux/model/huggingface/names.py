"""Where each tensor of ours lies in a folder of Hugging Face transformers, and how it is changed on the way in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pollux.model.config import AudioTower, ModelConfig, PatchTower, SoftInputConfig, VisionTower

Change = Literal["same", "transposed", "scalar", "first half", "second half", "kernel", "plus one"]


@dataclass(frozen=True)
class Source:
    """Where a tensor of ours lies in a Hugging Face folder: its name and how it is changed on the way in.

    transposed: the last two axes are exchanged. first/second half: of the axis before the last, then transposed. scalar: [1] -> [].
    kernel: [channels, 1, time] -> [time, channels]. plus one: 1 is added, in float32, or the sum would be rounded.
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
        if self.change == "plus one":
            return array.astype(np.float32) + 1
        if self.change != "transposed":
            half = array.shape[-2] // 2
            array = array[..., :half, :] if self.change == "first half" else array[..., half:, :]
        return array.swapaxes(-1, -2)

    def write(self, array: np.ndarray) -> np.ndarray:
        """Our tensor -> theirs, or the half of it that this is."""
        if self.change == "same":
            return array
        if self.change == "scalar":
            return array.reshape(1)
        return array.T[:, None] if self.change == "kernel" else array.swapaxes(-1, -2)


def is_stacked(name: str) -> bool:
    """Has our tensor the layers of a group, or of a tower, on its first axis?"""
    return name.startswith("groups.") or ".tower.layers." in name


def sources(config: ModelConfig, data: Mapping[str, Any]) -> dict[str, tuple[Source, ...]]:
    """For each tensor of ours, by name (folder.tensor_name): where it comes from; several sources are stacked on a new first axis.

    A tensor that is missing here has no counterpart and keeps its initial value.
    """
    prefix = "model.language_model." if "text_config" in data else "model."
    found: dict[str, tuple[Source, ...]] = {}
    for soft in config.soft_inputs:
        if soft.tower is not None:
            found |= {f"soft.{soft.name}.{name}": source for name, source in _tower_sources(soft).items()}
    third = data.get("model_type") == "gemma3_text"

    def of_norm(name: str, change: Change) -> Change:
        return "plus one" if third and "norm" in name else change

    found |= {name: (Source(prefix + source.name, of_norm(name, source.change)),) for name, source in _TOP.items()}
    if not config.tied:
        found["unembed"] = (Source("lm_head.weight", "transposed"),)
    for place, indices in _places(config):
        for name, source in _LAYER.items():
            change = of_norm(name, source.change)
            found[f"{place}.{name}"] = tuple(Source(f"{prefix}layers.{i}.{source.name}", change) for i in indices)
    return found


def _places(config: ModelConfig) -> Iterator[tuple[str, list[int]]]:
    """Each stack of layers of the parameter tree, with the numbers of its layers."""
    first, step = config.num_groups * len(config.pattern), len(config.pattern)
    for i in range(step if config.num_groups else 0):
        yield f"groups.{i}", list(range(i, first, step))
    for i in range(len(config.tail)):
        yield f"tail.{i}", [first + i]


def _tower_sources(soft: SoftInputConfig) -> dict[str, tuple[Source, ...]]:
    """Sources of a tower's parameters and of its projection, by their names below soft.NAME."""
    tower = soft.tower
    found: dict[str, tuple[Source, ...]] = {}
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
