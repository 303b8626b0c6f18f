"""One step of generation through all layers as one native call, for small dense float32 models on a CPU.

Such a step is some three hundred small operations, and launching them, or waking threads for each, costs more than what they compute.
Given the cache, the rows of a step know nothing of each other; so native/decode_layers.h takes blocks of rows through all layers, a
thread each. decoder.py has the formulas, and runs them where this does not cover a model.
Shapes: B rows, D model, H head size, N pages of P slots, M pages of a row, K kv-heads, G groups of the pattern.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from pollux.model import native
from pollux.model.attention import rope_frequencies, rope_kind
from pollux.model.cache import Cache, LayerCache
from pollux.model.config import Activation, LayerConfig, ModelConfig
from pollux.model.dot_attention import Rounded, has_kernels
from pollux.model.params import declare
from pollux.model.spec import Params, is_spec
from pollux.model.weight import Weight

MOST = 2**22  # weights of all layers: each thread reads all of them, which costs little while they stay in a cache of the processor
STEP, KIND = 4, 18  # arguments of a step, and of each kind of layers, of which the last two are keys and values


def covers(params: Params, config: ModelConfig, cache: Cache | None, tokens: int, dtype) -> bool:
    """Whether `decode_layers` can take a step of so many tokens a row."""
    if cache is None or tokens != 1 or dtype != jnp.float32 or not _is_covered(config):
        return False
    caches = (*cache.groups, *cache.tail)
    leaves = jax.tree.leaves((params["groups"], params["tail"]), is_leaf=lambda x: isinstance(x, Weight))
    plain = all(not isinstance(leaf, Weight) and leaf.dtype == jnp.float32 for leaf in leaves)
    kept = all(own is not None and not isinstance(own.k, Rounded) and own.k.dtype == jnp.float32 for own in caches)
    return plain and kept and has_kernels() and native.decoding() is not None


def decode_layers(
    params: Params,
    config: ModelConfig,
    x_BD: jax.Array,
    position_B: jax.Array,
    segment_B: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """What the layers and the final norm make of a token a row: hidden states [B, D], and the cache with its keys and values.

    A row of segment 0 neither reads nor writes the cache, and its hidden state is x.
    """
    groups = config.pattern if config.num_groups else ()
    kinds = (*groups, *config.tail)
    caches = [own for own in (*cache.groups, *cache.tail) if own is not None]
    args = [x_BD, position_B.astype(jnp.int32), segment_B.astype(jnp.int32), params["final_norm"]["scale"]]
    kinds_of_rope = {rope_kind(layer.attention) for layer in kinds if layer.attention.position == "rope"}
    frequencies = {kind: rope_frequencies(*kind) for kind in kinds_of_rope}
    none = jnp.zeros(0, jnp.float32)
    for layer, weights, own in zip(kinds, (*params["groups"], *params["tail"]), caches, strict=True):
        frequency = frequencies[rope_kind(layer.attention)] if layer.attention.position == "rope" else none
        args += [*_weights(layer, weights), frequency, _table(own, len(x_BD)), own.k, own.v]
    stacks = [x for own in caches for x in (own.k, own.v)]
    call = jax.ffi.ffi_call(
        "pollux_decode_layers",
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (x_BD, *stacks)],
        input_output_aliases={STEP + i * KIND + KIND - 2 + j: 1 + 2 * i + j for i in range(len(kinds)) for j in range(2)},
        vmap_method="sequential",
    )
    out, *written = call(
        *args,
        groups=np.int64(config.num_groups),
        pattern=np.int64(len(groups)),
        windows=np.array([layer.attention.window for layer in kinds], np.int64),
        activations=np.array([_activation(layer) for layer in kinds], np.int64),
        value_norms=np.array([layer.attention.value_norm for layer in kinds], np.int64),
        log_n_natives=np.array([layer.attention.log_n_native for layer in kinds], np.int64),
        scales=np.array([layer.attention.scale or layer.attention.head_dim**-0.5 for layer in kinds], np.float32),
        eps=np.float32(config.norm_eps),
    )
    new = [replace(own, k=k, v=v) for own, k, v in zip(caches, written[::2], written[1::2], strict=True)]
    return out, replace(cache, groups=tuple(new[: len(groups)]), tail=tuple(new[len(groups) :]))


@functools.cache
def _is_covered(config: ModelConfig) -> bool:
    specs = declare(config)
    weights = sum(math.prod(spec.shape) for spec in jax.tree.leaves((specs["groups"], specs["tail"]), is_leaf=is_spec))
    plain = config.norm == "rms" and config.pre_norm and not config.per_layer_width and 0 < weights <= MOST
    return plain and all(map(_is_plain, config.layers))


def _is_plain(layer: LayerConfig) -> bool:
    a, f = layer.attention, layer.feed_forward
    other = a.soft_cap or a.gaussian_prior or a.bias or a.shares_kv or layer.experts or layer.cross_attention
    return not other and f is not None and not f.bias


def _activation(layer: LayerConfig) -> int:
    assert layer.feed_forward is not None
    return get_args(Activation).index(layer.feed_forward.activation)


def _weights(layer: LayerConfig, params: Params) -> list[Any]:
    """In the order of Layer in native/decode_layers.h; those that a layer does without are empty."""
    none = jnp.zeros(0, jnp.float32)
    attention, feed_forward = params["attention"], params["feed_forward"]

    def scale(name: str):
        return params[name]["scale"] if name in params else none

    return [
        scale("attention_pre_norm"),
        *(attention.get(name, none) for name in ("q", "k", "v", "q_norm", "k_norm", "o")),
        *(scale(name) for name in ("attention_post_norm", "feed_forward_pre_norm")),
        *(feed_forward.get(name, none) for name in ("up", "gate", "down")),
        scale("feed_forward_post_norm"),
        params["layer_scale"] if layer.layer_scale else none,
    ]


def _table(own: LayerCache, rows: int) -> jax.Array:
    """int32 [B, M]; without pages each row is one."""
    return jnp.arange(rows, dtype=jnp.int32)[:, None] if own.table is None else jnp.asarray(own.table, jnp.int32)
