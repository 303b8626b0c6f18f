"""One declaration per parameter: shape, logical axes, initialiser. All else follows: start values, count, restore, sharding.

Parameters are nested dicts; the leaves of a pattern group are stacked on a leading axis "layers" for the scan.
Logical axes: layers, vocab, embed (D), heads (N*H), kv_heads (K*H), mlp (F), experts (E), features, grid; None = never sharded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pollux.model import towers
from pollux.model.config import AttentionConfig, ExpertsConfig, FeedForwardConfig, LayerConfig, ModelConfig, SoftInputConfig
from pollux.model.spec import Params, Spec, is_spec, stack


def _norm(config: ModelConfig, size: int, axis: str | None = None) -> dict[str, Spec]:
    spec = {"scale": Spec((size,), (axis,), 1.0)}
    if config.norm == "layer":
        spec["bias"] = Spec((size,), (axis,), 0.0)
    return spec


def _attention(config: ModelConfig, a: AttentionConfig) -> dict[str, Any]:
    d, q_size, kv_size = config.d_model, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    spec: dict[str, Any] = {"q": Spec((d, q_size), ("embed", "heads")), "o": Spec((q_size, d), ("heads", "embed"))}
    if a.bias:
        spec |= {"q_bias": Spec((q_size,), ("heads",), 0.0), "o_bias": Spec((d,), ("embed",), 0.0)}
    if a.qk_norm:
        spec["q_norm"] = Spec((a.head_dim,), (None,), 1.0)
    for name in () if a.shares_kv else ("k",) if a.values_reuse_keys else ("k", "v"):
        spec[name] = Spec((d, kv_size), ("embed", "kv_heads"))
        if a.bias:
            spec[f"{name}_bias"] = Spec((kv_size,), ("kv_heads",), 0.0)
    if a.qk_norm and not a.shares_kv:
        spec["k_norm"] = Spec((a.head_dim,), (None,), 1.0)
    if a.gaussian_prior:
        spec["log_sigma"] = Spec((a.num_heads,), (None,), math.log(64.0))
    return spec


def _feed_forward(config: ModelConfig, f: FeedForwardConfig) -> dict[str, Spec]:
    d = config.d_model
    spec = {"up": Spec((d, f.hidden), ("embed", "mlp")), "down": Spec((f.hidden, d), ("mlp", "embed"))}
    if f.gated:
        spec["gate"] = Spec((d, f.hidden), ("embed", "mlp"))
    if f.bias:
        spec |= {"up_bias": Spec((f.hidden,), ("mlp",), 0.0), "down_bias": Spec((d,), ("embed",), 0.0)}
    return spec


def _experts(config: ModelConfig, e: ExpertsConfig) -> dict[str, Spec]:
    d = config.d_model
    return {
        "router": Spec((d, e.num_experts), ("embed", None)),
        "gate": Spec((e.num_experts, d, e.hidden), ("experts", "embed", "mlp")),
        "up": Spec((e.num_experts, d, e.hidden), ("experts", "embed", "mlp")),
        "down": Spec((e.num_experts, e.hidden, d), ("experts", "mlp", "embed")),
    } | (
        {
            "router_scale": Spec((d,), ("embed",), 1.0),
            "expert_scale": Spec((e.num_experts,), ("experts",), 1.0),
            "pre_norm": Spec((d,), ("embed",), 1.0),
            "post_norm": Spec((d,), ("embed",), 1.0),
            "dense_post_norm": Spec((d,), ("embed",), 1.0),
        }
        if e.separate
        else {}
    )


def _layer(config: ModelConfig, layer: LayerConfig) -> dict[str, Any]:
    spec: dict[str, Any] = {"attention": _attention(config, layer.attention)}
    blocks = ["attention"] if layer.parallel else ["attention", "feed_forward"]
    if layer.feed_forward:
        spec["feed_forward"] = _feed_forward(config, layer.feed_forward)
    if layer.experts:
        spec["experts"] = _experts(config, layer.experts)
    if layer.cross_attention:
        spec["cross_attention"] = _attention(config, layer.cross_attention) | {"gate": Spec((), (), 0.0)}
        blocks.append("cross_attention")
    for block in blocks:
        if config.pre_norm:
            spec[f"{block}_pre_norm"] = _norm(config, config.d_model, "embed")
        if config.post_norm:
            spec[f"{block}_post_norm"] = _norm(config, config.d_model, "embed")
    if config.per_layer_width:
        d, p = config.d_model, config.per_layer_width
        spec["per_layer"] = {"gate": Spec((d, p), ("embed", None)), "out": Spec((p, d), (None, "embed"))}
        spec["per_layer_post_norm"] = _norm(config, d, "embed")
    if layer.layer_scale:
        spec["layer_scale"] = Spec((), (), 1.0)
    return spec


def _soft(config: ModelConfig, s: SoftInputConfig) -> dict[str, Any]:
    d = config.d_model
    if s.tower is not None:
        width, tower = towers.declare(s.tower, s.features)
        return {"tower": tower, "out": Spec((width, d), ("features", "embed"))}
    spec: dict[str, Any] = {} if s.shares else {"out_norm": _norm(config, d, "embed")}
    if s.in_norm:
        spec["in_norm"] = _norm(config, s.features)
    features, channels = s.features, s.stem_channels
    for i, (kernel, _, out) in enumerate(s.stem):
        spec[f"stem_{i}"] = Spec((kernel * kernel * channels, out), ("features", None))
        channels = out
    if s.stem:
        features = s.stem_sides()[-1] ** 2 * channels
    if s.colour_grid:
        spec["colours"] = Spec((s.colour_grid**2 * s.in_channels, d), ("features", "embed"))
    if s.hidden:
        spec["hidden"] = Spec((features, s.hidden), ("features", "mlp"))
    if s.stem or not s.shares:
        spec["out"] = Spec((s.hidden or features, d), ("mlp" if s.hidden else "features", "embed"))
    if s.grid:
        spec |= {name: Spec((s.grid, d), ("grid", "embed"), "normal", 16 * d) for name in ("row", "column")}
    return spec


def declare(config: ModelConfig) -> Params:
    """The pytree of Specs of a model."""
    d = config.d_model
    specs: Params = {
        "embed": Spec((config.vocab_size, d), ("vocab", "embed"), "normal", d),
        "soft": {s.name: _soft(config, s) for s in config.soft_inputs},
        "groups": tuple(stack(_layer(config, layer), config.num_groups) for layer in (config.pattern if config.num_groups else ())),
        "tail": tuple(_layer(config, layer) for layer in config.tail),
        "final_norm": _norm(config, d, "embed"),
        "log_temperature": Spec((), (), math.log(0.07)),
    }
    if config.per_layer_width:
        p, width = config.per_layer_width, config.num_layers * config.per_layer_width
        specs["per_layer"] = {
            "embed": Spec((config.per_layer_vocab, width), ("vocab", None), "normal", p),
            "project": Spec((d, width), ("embed", None)),
            "norm": _norm(config, p),
        }
    if not config.tied:
        specs["unembed"] = Spec((d, config.vocab_size), ("embed", "vocab"))
    return specs


def matrix(spec: Spec) -> tuple[int, int]:
    """Inputs and outputs of a matrix, or of each of a stack; an embedding table [V, D] is read as D inputs and V outputs."""
    first, last = spec.shape[-2:]
    return (last, first) if spec.axes[-2] == "vocab" else (first, last)


_SMALL = 2**16  # elements of a leaf that is drawn together with others


def map_specs(f: Callable[[Spec], Any], specs: Params) -> Params:
    return jax.tree.map(f, specs, is_leaf=is_spec)


def init(config: ModelConfig, key: jax.Array, dtype=jnp.float32) -> Params:
    """Fresh parameters of a model."""
    return initialise(declare(config), key, dtype)


def initialise(specs: Params, key: jax.Array, dtype=jnp.float32) -> Params:
    """Fresh parameters; each leaf's key follows from its path, so adding a parameter does not change the others."""
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)
    sizes = {jax.tree_util.keystr(path): math.prod(spec.shape) for path, spec in leaves if spec.init == "normal"}

    def draw(names: list[str]) -> dict[str, jax.Array]:
        """Cut from rows of the longest: with JAX's partitionable random numbers a shorter draw is the beginning of a longer one."""
        shape = (max(sizes[name] for name in names),)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.array([_stable_hash(name) for name in names], jnp.uint32))
        rows = jax.vmap(lambda leaf_key: jax.random.truncated_normal(leaf_key, -3, 3, shape, jnp.float32))(keys)
        return {name: row[: sizes[name]] for name, row in zip(names, rows, strict=True)}

    small = [name for name, size in sizes.items() if size <= _SMALL]
    values = draw(small) if small else {}  # all at once: a program of few draws is made sooner than one of many
    for name in sizes:
        if name not in values:
            values |= draw([name])

    def make(path, spec: Spec):
        if spec.init == "normal":
            std = (spec.fan_in or spec.shape[-2]) ** -0.5
            return (values[jax.tree_util.keystr(path)].reshape(spec.shape) * std).astype(dtype)
        return jnp.full(spec.shape, spec.init, dtype)

    return jax.tree_util.tree_map_with_path(make, specs, is_leaf=is_spec)


def _stable_hash(text: str) -> int:
    value = 2166136261
    for byte in text.encode():
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value & 0x7FFFFFFF


def abstract(config: ModelConfig, dtype=jnp.float32) -> Params:
    """Shapes and dtypes without memory."""
    return map_specs(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), declare(config))


def count(config: ModelConfig) -> int:
    """Number of parameters."""
    return sum(math.prod(s.shape) for s in jax.tree.leaves(declare(config), is_leaf=is_spec))


def count_by_part(config: ModelConfig) -> dict[str, int]:
    """Parameters of the embedding, each soft input, attention, feed-forward, experts and the rest."""
    parts: dict[str, int] = {}
    for path, spec in jax.tree_util.tree_leaves_with_path(declare(config), is_leaf=is_spec):
        names = [str(getattr(p, "key", getattr(p, "idx", ""))) for p in path]
        if "per_layer" in names:
            part = "per-layer embeddings"
        elif names[0] in ("groups", "tail"):
            part = names[2] if names[2] in ("attention", "feed_forward", "experts", "cross_attention") else "norms"
        elif names[0] == "soft":
            part = f"{names[1]} input"
        else:
            part = {"embed": "embedding", "unembed": "unembedding"}.get(names[0], "norms")
        parts[part] = parts.get(part, 0) + math.prod(spec.shape)
    return parts


def flops_per_token(config: ModelConfig, context: int) -> int:
    """Forward multiply-adds x 2 of one text token that sees `context` tokens (a training step costs three times this).

    Counts matrix products only; a routed expert counts top_k times, a local layer sees at most its window. Cross-attention, whose cost
    depends on the soft tokens of the row, is not counted.
    """
    total = 2 * config.d_model * (config.vocab_size + 3 * config.num_layers * config.per_layer_width)
    for layer in config.layers:
        a = layer.attention
        seen = min(context, a.window) if a.window else context
        kv = 0 if a.shares_kv else 1 if a.values_reuse_keys else 2
        total += 2 * config.d_model * a.head_dim * (2 * a.num_heads + kv * a.num_kv_heads) + 4 * seen * a.num_heads * a.head_dim
        if layer.feed_forward:
            total += 2 * config.d_model * layer.feed_forward.hidden * (3 if layer.feed_forward.gated else 2)
        if layer.experts:
            total += 2 * config.d_model * (3 * layer.experts.hidden * layer.experts.top_k + layer.experts.num_experts)
    return total


def kv_bytes_per_token(config: ModelConfig, bytes_per_value: int = 2) -> dict[str, int]:
    """Cache bytes that one more token adds: in global layers always, in local layers only up to the window."""
    sizes = {"global": 0, "local": 0}
    for layer in config.layers:
        a = layer.attention
        sizes["local" if a.window else "global"] += 0 if a.shares_kv else 2 * a.num_kv_heads * a.head_dim * bytes_per_value
    return sizes
