"""Which architecture of llama.cpp computes what a model computes: metadata and tensors, by their names in a GGUF file.

With norms after its sub-blocks a model is written as gemma4, where a tensor of factors divides the frequencies of RoPE in global layers:
1e30 stops a rotation, so layers without position are exact. Without them it is written as exaone-moe whose layers are all dense: norms
before the sub-blocks only, RoPE in local layers, none in global ones. llama.cpp opens the text part of a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import gguf
import numpy as np

from pollux.model import huggingface
from pollux.model.config import AttentionConfig, LayerConfig, ModelConfig

NO_ROTATION = 1e30

# exaone-moe has a SiLU with a gate where the smallest models have a squared ReLU: silu(s z) z / s differs from relu(z)^2 by at most
# 0.5 / s^2. The norm before the block shrinks, so that neither the larger nor the smaller weights leave the range of f16.
SHARPNESS = 256.0
SHRINK = 1 / 32


def architecture(config: ModelConfig) -> str:
    return "gemma4" if config.post_norm else "exaone-moe"


def describe(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """Add the sizes of a model to a file's metadata. Raises ValueError naming the first feature that llama.cpp has no place for."""
    config = dataclasses.replace(config, soft_inputs=())
    if config.post_norm:
        _check_gemma(config)
    else:
        _check_exaone(config)
    layers = config.layers
    attention = [layer.attention for layer in layers]
    far = next((a for a in attention if not a.window), attention[-1])
    near = next((a for a in attention if a.window), far)
    writer.add_context_length(min([config.max_positions, *(a.log_n_native for a in attention if a.log_n_native)]))
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length([layer.feed_forward.hidden for layer in layers if layer.feed_forward])
    writer.add_head_count([a.num_heads for a in attention])
    writer.add_head_count_kv([a.num_kv_heads for a in attention])
    writer.add_key_length(far.head_dim)
    writer.add_value_length(far.head_dim)
    writer.add_rope_dimension_count(far.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_sliding_window(near.window or config.max_positions)
    writer.add_sliding_window_pattern([a.window > 0 for a in attention])
    if config.post_norm:
        _describe_gemma(writer, config, near, far)
    else:
        writer.add_rope_freq_base(near.rope_base)
        writer.add_leading_dense_block_count(config.num_layers)
        writer.add_expert_feed_forward_length(0)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)


def tensors(params: Mapping[str, np.ndarray], config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Name and array (output axis first) of each tensor, one after the other. params: ours by name (folder.named)."""
    config = dataclasses.replace(config, soft_inputs=())
    kind = gguf.MODEL_ARCH.GEMMA4 if config.post_norm else gguf.MODEL_ARCH.EXAONE_MOE
    names = gguf.get_tensor_name_map(kind, config.num_layers)
    params = {name: array.astype(np.float32) if name.endswith(("norm", "scale")) else array for name, array in params.items()}
    written = _gemma_tensors(params, config) if config.post_norm else _exaone_tensors(params, config)
    for theirs, array in written:
        stem, _, last = theirs.rpartition(".")
        if theirs == "rope_freqs.weight":
            yield theirs, array
        elif stem.endswith(".router") and last != "weight":  # a scale of the router's input, and one of each expert's output
            kept = "ffn_gate_inp.scale" if last == "scale" else "ffn_down_exps.scale"
            yield f"blk.{stem.split('.')[2]}.{kept}", array
        else:
            name = names.get_name(theirs.removesuffix(".weight"))
            assert name is not None, theirs
            yield f"{name}.weight", array


def _describe_gemma(writer: gguf.GGUFWriter, config: ModelConfig, near: AttentionConfig, far: AttentionConfig) -> None:
    writer.add_rope_freq_base(far.rope_base)
    writer.add_rope_freq_base_swa(near.rope_base)
    writer.add_rope_dimension_count_swa(near.head_dim)
    writer.add_key_length_swa(near.head_dim)
    writer.add_value_length_swa(near.head_dim)
    writer.add_shared_kv_layers(sum(layer.attention.shares_kv for layer in config.layers))
    writer.add_embedding_length_per_layer_input(config.per_layer_width)
    if config.logit_soft_cap:
        writer.add_final_logit_softcapping(config.logit_soft_cap)
    experts = config.layers[0].experts
    if experts:
        writer.add_expert_count(experts.num_experts)
        writer.add_expert_used_count(experts.top_k)
        writer.add_expert_feed_forward_length(experts.hidden)


def _gemma_tensors(params: Mapping[str, np.ndarray], config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    far = config.layers[-1].attention
    half = far.head_dim // 2
    turned = 0 if far.position == "none" else int(half * far.rope_fraction)
    yield "rope_freqs.weight", np.repeat(np.array([1.0, NO_ROTATION], np.float32), [turned, half - turned])
    yield from huggingface.tensors(params, config, {})


def _exaone_tensors(params: Mapping[str, np.ndarray], config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Names of its folders for transformers, for the tensors that huggingface.tensors gives for a Gemma."""
    feed_forward = config.layers[0].feed_forward
    assert feed_forward is not None
    gated, head_dim = feed_forward.gated, config.layers[0].attention.head_dim
    for name, array in huggingface.tensors(params, config, {}):
        if name == "model.embed_tokens.weight":
            if config.tied:
                yield "lm_head.weight", array
            yield name, array.astype(np.float32) * np.float32(config.d_model**0.5) if config.embed_scale else array
        elif name.endswith("q_norm.weight"):  # here scores are scaled again
            yield name, array * np.float32(head_dim**0.5)
        elif name.endswith("pre_feedforward_layernorm.weight"):
            name = name.replace("pre_feedforward", "post_attention")
            yield name, array if gated else array * np.float32(SHRINK)
        elif name.endswith("up_proj.weight") and not gated:
            wide = array.astype(np.float32) / np.float32(SHRINK)
            yield name.replace("up_proj", "gate_proj"), wide * np.float32(SHARPNESS)
            yield name, wide / np.float32(SHARPNESS)
        elif not name.endswith("layer_scalar"):
            yield name, array


def _check_gemma(config: ModelConfig) -> None:
    """What llama.cpp leaves out of Gemma 4, beside what Gemma 4 has not."""
    huggingface.check(config)
    for layer in config.layers:
        a = layer.attention
        turns = a.position == "rope" and a.rope_fraction == 1
        _require("Gemma 4", turns or not a.window, "local layers whose heads are not rotated as a whole")
    wide = config.per_layer_vocab in (0, config.vocab_size)
    _require("Gemma 4", wide, f"per-layer embeddings of {config.per_layer_vocab} of {config.vocab_size} ids")
    windows = [layer.attention.window for layer in config.layers if not layer.attention.shares_kv]
    shared = len(windows) < config.num_layers
    fits = not shared or (len(windows) > 1 and windows[-2] > 0 and windows[-1] == 0)
    _require("Gemma 4", fits, "shared keys and values unless a local and then a global layer are the last with their own")


def _check_exaone(config: ModelConfig) -> None:
    attention = [layer.attention for layer in config.layers]
    features = {
        "other norms than RMSNorm before each sub-block": config.norm != "rms" or not config.pre_norm,
        "a logit_soft_cap": config.logit_soft_cap > 0,
        "per-layer embeddings": config.per_layer_width > 0,
        "layers of several shapes": len({_shape(layer) for layer in config.layers}) > 1,
        "local layers of several kinds": len({(a.window, a.rope_base) for a in attention if a.window}) > 1,
    }
    for feature, there in features.items():
        _require("EXAONE", not there, feature)
    for layer in config.layers:
        _check_exaone_layer(layer)


def _check_exaone_layer(layer: LayerConfig) -> None:
    a, f = layer.attention, layer.feed_forward
    rotated = a.position == "rope" and a.rope_fraction == 1
    known = f is not None and not f.bias and (f.activation, f.gated) in (("silu", True), ("relu2", False))
    features = {
        "parallel attention and feed-forward": layer.parallel,
        "cross_attention": layer.cross_attention is not None,
        "experts without norms after them": layer.experts is not None,
        "a layer_scale": layer.layer_scale,
        "a feed-forward other than a gated SiLU or a squared ReLU without biases": not known,
        "queries and keys that are not normalised (qk_norm)": not a.qk_norm,
        "values that are normalised (value_norm)": a.value_norm,
        "values that reuse keys": a.values_reuse_keys,
        "a soft_cap on the scores": a.soft_cap > 0,
        "a gaussian_prior": a.gaussian_prior,
        "biases in attention": a.bias,
        "shared keys and values": a.shares_kv,
        "local layers whose heads are not rotated as a whole": a.window > 0 and not rotated,
        "global layers with a position": not a.window and a.position != "none",
    }
    for feature, there in features.items():
        _require("EXAONE", not there, feature)


def _shape(layer: LayerConfig) -> tuple:
    a = layer.attention
    return a.num_heads, a.num_kv_heads, a.head_dim, layer.feed_forward


def _require(kind: str, fits: bool, feature: str) -> None:
    if not fits:
        raise ValueError(f"{kind} in llama.cpp has no place for {feature}, so this model cannot be written as GGUF")
