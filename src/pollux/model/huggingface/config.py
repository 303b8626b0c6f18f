"""Folders in the layout of Hugging Face transformers: config.json becomes a ModelConfig, tensors find their places in the parameter tree.

Gemma 4 is written here as values of the one config: "unified" (12B), dense with a vision tower (31B), mixture of experts (26B-A4B),
and per-layer embeddings with shared keys and values (E2B, E4B); so are the text models of Gemma 3. What this table does not name is
refused, not guessed.
Legend: D model, N heads, K kv-heads, H head size, F feed-forward, E experts, P per-layer width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
    Tower,
    VisionTower,
)

ARCHITECTURES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text", "gemma3_text")
MELS = 128  # of the audio tower


def text_config(data: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json about the decoder."""
    return data.get("text_config", data)


def model_config(data: dict[str, Any], name: str) -> ModelConfig:
    """The ModelConfig of a config.json. Raises ValueError naming an architecture or a setting that has no counterpart."""
    if data["model_type"] not in ARCHITECTURES:
        raise ValueError(f"pollux opens {', '.join(ARCHITECTURES)}, not models of type {data['model_type']!r}")
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


def _soft_inputs(data: dict[str, Any]) -> Iterator[SoftInputConfig]:
    """The embedders of what the folder has configs for."""
    vision, audio = data.get("vision_config"), data.get("audio_config")
    if vision is not None:
        side = vision["patch_size"] * vision["pooling_kernel_size"]
        features = 3 * side**2
        if vision["model_type"] == "gemma4_unified_vision":
            tower: Tower = PatchTower(vision["mm_embed_dim"], vision["mm_posemb_size"])
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
        if data.get("video_token_id") is not None:
            yield SoftInputConfig("video", features, shares="image", in_norm=False)
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


def _layer_types(text: dict[str, Any]) -> list[str]:
    every = text.get("sliding_window_pattern", 6)
    numbers = range(1, text["num_hidden_layers"] + 1)
    kinds = text.get("layer_types") or ["sliding_attention" if i % every else "full_attention" for i in numbers]
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown:
        raise ValueError(f"layer_types has {', '.join(sorted(unknown))}; pollux knows sliding_attention and full_attention")
    return kinds if _is_third(text) else [*kinds[:-1], "full_attention"]  # as transformers does


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
    rope = _rope(text, kind)
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
        value_norm=not _is_third(text),
        values_reuse_keys=reused,
        scale=text["query_pre_attn_scalar"] ** -0.5 if _is_third(text) else 1.0,
        soft_cap=text.get("attn_logit_softcapping") or 0.0,
        two_way=not far and text.get("use_bidirectional_attention") == "vision",
        shares_kv=shares_kv,
    )
    wide = 2 if text.get("use_double_wide_mlp") and shares_kv else 1
    experts = None
    if text.get("enable_moe_block"):
        experts = ExpertsConfig(text["num_experts"], text["top_k_experts"], text["moe_intermediate_size"], separate=True)
    return LayerConfig(attention, FeedForwardConfig(text["intermediate_size"] * wide), experts, layer_scale=not _is_third(text))


def _is_third(text: dict[str, Any]) -> bool:
    return text.get("model_type") == "gemma3_text"


def _rope(text: dict[str, Any], kind: str) -> dict[str, Any]:
    """The rotation of a kind of layer, in the newer form."""
    if text.get("rope_parameters"):
        return text["rope_parameters"][kind]
    if kind == "sliding_attention":
        return {"rope_type": "default", "rope_theta": text.get("rope_local_base_freq", 10_000.0)}
    partial = {"rope_type": "default"} if _is_third(text) else {"rope_type": "proportional", "partial_rotary_factor": 0.25}
    return partial | {"rope_theta": text.get("rope_theta", 1_000_000.0)}


def _refuse(text: dict[str, Any]) -> None:
    """Raises ValueError for what the decoder would compute otherwise."""
    wanted: dict[str, tuple[Any, ...]] = {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False, None),
        "use_bidirectional_attention": ("vision", False, None),
        "rope_scaling": (None,),
    }
    for name, values in wanted.items():
        if text.get(name, values[0]) not in values:
            raise ValueError(f"config.json has {name} = {text[name]!r}; pollux computes {' or '.join(map(repr, values))}")


def _period(layers: list[LayerConfig]) -> int:
    """The shortest pattern whose repetitions, and a rest of it that is shorter, make up the layers."""
    fits = (p for p in range(1, len(layers) + 1) if all(layers[i] == layers[i - p] for i in range(p, len(layers))))
    return next(fits, 0)
