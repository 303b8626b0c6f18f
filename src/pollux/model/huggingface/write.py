"""A model of ours as a folder of Hugging Face transformers: config.json and tensors, or one sentence why it has no place there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pollux.model.config import AttentionConfig, AudioTower, FrameTower, LayerConfig, ModelConfig, PatchTower, VisionTower
from pollux.model.huggingface.names import is_stacked, sources

NAME = "gemma4"


def config_json(config: ModelConfig, token_ids: Mapping[str, int]) -> dict[str, Any]:
    """config.json of the architecture that computes what this model computes: gemma4_text, gemma4 or gemma4_unified.

    token_ids: by their names in config.json, such as bos_token_id. Raises ValueError naming the first feature that Gemma 4 lacks.
    """
    check(config)
    layers = config.layers
    near = next((x.attention for x in layers if x.attention.window), None)
    far = layers[-1].attention
    _require(near is None or near.num_heads == far.num_heads, "local and global layers with different num_heads")
    width = layers[0].feed_forward.hidden  # type: ignore[union-attr]  # checked
    experts = layers[0].experts
    shared = sum(x.attention.shares_kv for x in layers)
    text: dict[str, Any] = {
        "model_type": "gemma4_text",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": far.num_heads,
        "num_key_value_heads": (near or far).num_kv_heads,
        "head_dim": (near or far).head_dim,
        "global_head_dim": far.head_dim,
        "num_global_key_value_heads": far.num_kv_heads if far.values_reuse_keys else None,
        "attention_k_eq_v": far.values_reuse_keys,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": min([config.max_positions, *(n for x in layers if (n := x.attention.log_n_native))]),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "sliding_window": near.window if near else config.max_positions,
        "layer_types": ["sliding_attention" if x.attention.window else "full_attention" for x in layers],
        "rope_parameters": {"sliding_attention": _rope(near or far), "full_attention": _rope(far)},
        "final_logit_softcapping": config.logit_soft_cap or None,
        "use_bidirectional_attention": "vision" if near and near.two_way and config.soft_inputs else None,
        "num_kv_shared_layers": shared,
        "use_double_wide_mlp": any(x.feed_forward.hidden != width for x in layers),  # type: ignore[union-attr]
        "hidden_size_per_layer_input": config.per_layer_width,
        "vocab_size_per_layer_input": config.per_layer_vocab or config.vocab_size,
        "enable_moe_block": experts is not None,
        "num_experts": experts.num_experts if experts else None,
        "top_k_experts": experts.top_k if experts else None,
        "moe_intermediate_size": experts.hidden if experts else None,
    } | {name: i for name, i in token_ids.items() if name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if not config.soft_inputs:
        return {"architectures": ["Gemma4ForCausalLM"]} | text
    return _with_towers(config, text, token_ids)


def tensors(params: Mapping[str, np.ndarray], config: ModelConfig, data: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors, by their names, one after the other. params: ours by name (folder.tensor_name); data: what config_json made."""
    first_halves: dict[str, np.ndarray] = {}
    for name, found in sources(config, data).items():
        if name in params:
            array = _unscaled(name, np.asarray(params[name]), config)
        elif name.endswith(".layer_scale"):
            array = np.ones(len(found), np.asarray(params["embed"]).dtype)
        else:
            continue
        for source, one in zip(found, array if is_stacked(name) else [array], strict=True):
            theirs = source.write(one)
            if source.change == "first half":
                first_halves[source.name] = theirs
            elif source.change == "second half":
                yield source.name, np.concatenate([first_halves.pop(source.name), theirs], -2)
            else:
                yield source.name, theirs


def _unscaled(name: str, array: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Gemma 4 does not scale the scores of attention: the scale moves into the norm of the queries."""
    kind, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    if kind not in ("groups", "tail") or rest != "attention.q_norm":
        return array
    attention = (config.pattern if kind == "groups" else config.tail)[int(number)].attention
    scale = attention.scale or attention.head_dim**-0.5
    return array if scale == 1 else (array.astype(np.float32) * np.float32(scale)).astype(array.dtype)


def _with_towers(config: ModelConfig, text: dict[str, Any], token_ids: Mapping[str, int]) -> dict[str, Any]:
    """The config of a model with soft inputs around that of its decoder."""
    towers = {soft.name: soft.tower for soft in config.soft_inputs}
    image, audio = towers.get("image"), towers.get("audio")
    unified = isinstance(image, PatchTower) or isinstance(audio, FrameTower)
    kind = f"{NAME}_unified" if unified else NAME
    text = text | {"model_type": f"{kind}_text"}
    if unified:
        for name in ("hidden_size_per_layer_input", "enable_moe_block"):
            _require(not text[name], f"{name} beside raw patches or sound")
    data: dict[str, Any] = {"architectures": [f"Gemma4{'Unified' if unified else ''}ForConditionalGeneration"], "model_type": kind}
    data |= {"text_config": text, "tie_word_embeddings": config.tied, "vision_config": None, "audio_config": None} | dict(token_ids)
    if isinstance(image, PatchTower):
        side = _side(config, 3)
        sizes = {"patch_size": side // 3, "pooling_kernel_size": 3, "mm_embed_dim": image.width, "mm_posemb_size": image.positions}
        data["vision_config"] = {"model_type": f"{kind}_vision", "output_proj_dims": image.width} | sizes
    elif isinstance(image, VisionTower):
        names = dict(
            patch_size=image.patch,
            pooling_kernel_size=image.pool,
            hidden_size=image.width,
            intermediate_size=image.hidden,
            num_hidden_layers=image.num_layers,
            num_attention_heads=image.num_heads,
            num_key_value_heads=image.num_kv_heads,
            head_dim=image.head_dim,
            rope_parameters={"rope_type": "axial", "rope_theta": image.rope_base},
            position_embedding_size=image.positions,
            standardize=image.standardise,
            use_clipped_linears=image.clipped,
        )
        data["vision_config"] = {"model_type": f"{kind}_vision"} | names
    if isinstance(audio, FrameTower):
        features = next(soft.features for soft in config.soft_inputs if soft.name == "audio")
        data["audio_config"] = {"model_type": f"{kind}_audio", "audio_embed_dim": features}
    elif isinstance(audio, AudioTower):
        names = dict(
            subsampling_conv_channels=list(audio.channels),
            hidden_size=audio.width,
            num_hidden_layers=audio.num_layers,
            num_attention_heads=audio.num_heads,
            conv_kernel_size=audio.kernel,
            attention_chunk_size=audio.chunk,
            attention_context_left=audio.left,
            attention_context_right=0,
            attention_logit_cap=audio.logit_cap,
            residual_weight=audio.residual_weight,
            output_proj_dims=audio.out,
            use_clipped_linears=audio.clipped,
            hidden_act="silu",
        )
        data["audio_config"] = {"model_type": f"{kind}_audio"} | names
    return data


def _side(config: ModelConfig, pool: int) -> int:
    features = next(soft.features for soft in config.soft_inputs if soft.name == "image")
    side = math.isqrt(features // 3)
    _require(side % pool == 0, f"patches of {side} pixels, which are not {pool} smaller ones")
    return side


def _rope(a: AttentionConfig) -> dict[str, Any]:
    fraction = 0.0 if a.position == "none" else a.rope_fraction
    kind = {"rope_type": "default"} if fraction == 1 else {"rope_type": "proportional", "partial_rotary_factor": fraction}
    return kind | {"rope_theta": a.rope_base}


def check(config: ModelConfig) -> None:
    """Raises ValueError naming what Gemma 4 does not compute."""
    _require(config.norm == "rms" and config.pre_norm and config.post_norm, "other norms than RMSNorm before and after each sub-block")
    _require(config.embed_scale, "embeddings that are not multiplied by the root of the width")
    towers = {soft.name for soft in config.soft_inputs if soft.tower is not None}
    for soft in config.soft_inputs:
        frames = soft.name == "video" and "image" in towers and soft.shares == "image"
        own = soft.name != "video" and soft.name in towers
        _require(frames or own, f"the input for {soft.name} ({'shared' if soft.shares else 'no tower'})")
    for layer in config.layers:
        _check_layer(layer, bool(config.soft_inputs))
    kinds = {bool(layer.attention.window): dataclasses.replace(layer.attention, shares_kv=False) for layer in config.layers}
    same = all(dataclasses.replace(x.attention, shares_kv=False) == kinds[bool(x.attention.window)] for x in config.layers)
    _require(same, "layers of more than one local and one global kind")
    _require(not config.layers[-1].attention.window, "a local last layer")
    first = config.layers[0]
    for layer in config.layers:
        wide = 2 if layer.attention.shares_kv else 1
        fits = layer.feed_forward.hidden in (first.feed_forward.hidden, wide * first.feed_forward.hidden)  # type: ignore[union-attr]
        _require(fits and layer.experts == first.experts, "feed-forwards of several shapes")


def _check_layer(layer: LayerConfig, sees: bool) -> None:
    a, f = layer.attention, layer.feed_forward
    features = {
        "parallel attention and feed-forward": layer.parallel,
        "cross_attention": layer.cross_attention is not None,
        "a layer without a dense feed-forward": f is None,
        "a feed-forward other than a gated GELU without biases": f is not None and (f.activation != "gelu" or not f.gated or f.bias),
        "experts whose branches share their norms": layer.experts is not None and not layer.experts.separate,
        "sinusoidal positions": a.position == "sinusoidal",
        "queries and keys that are not normalised (qk_norm)": not a.qk_norm,
        "values that are not normalised (value_norm)": not a.value_norm,
        "a soft_cap on the scores": a.soft_cap > 0,
        "a gaussian_prior": a.gaussian_prior,
        "biases in attention": a.bias,
        "two-way images in global layers (two_way)": sees and not a.window and a.two_way,
        "values that reuse keys in local layers": bool(a.window) and a.values_reuse_keys,
    }
    for feature, there in features.items():
        _require(not there, feature)


def _require(fits: bool, feature: str) -> None:
    if not fits:
        raise ValueError(f"Gemma 4 has no place for {feature}, so this model cannot be written as one")
