"""The decoder: one Batch of inputs -> hidden states -> logits. Every model of the family, with or without a cache, runs through here.

Shapes: B rows, T tokens, D model, V vocabulary, G groups of B/G rows that share N soft tokens, S keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from pollux.model.attention import Angles, KeysValues, Positions, Sight, output, project, rope_angles, rope_kind, self_attention, visible
from pollux.model.cache import Cache, LayerCache
from pollux.model.config import AttentionConfig, LayerConfig, ModelConfig
from pollux.model.decode_layers import covers, decode_layers
from pollux.model.dot_attention import additive_mask, attend
from pollux.model.embedders import embed_soft
from pollux.model.experts import experts, separate_experts
from pollux.model.layers import activation, feed_forward, norm, sinusoids
from pollux.model.matmul import matmul
from pollux.model.spec import Params
from pollux.model.weight import Stacked, Weight
from pollux.tokens.sequence import Inputs, SoftBatch

EMBEDDED = "embedded"  # in Inputs.soft: soft tokens of any modality, as `embedded` made them


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    hidden: jax.Array  # [B, T, D], after the final norm
    cache: Cache | None
    balance: jax.Array  # float32 scalar, mean balance loss of the expert layers (0 without experts)


@dataclass(frozen=True)
class _Context:
    """What every layer reads besides its input."""

    positions: Positions
    sights: dict[tuple[int, bool], Sight]  # by window and two_way
    angles: dict[tuple[int, float, float], Angles]  # by rope_kind
    soft: jax.Array  # [G, N, D], all modalities one after the other
    soft_positions: Positions  # [G, N]
    group_positions: Positions  # [G, B/G T], what `soft_positions` are taken from


def hidden(
    params: Params, config: ModelConfig, inputs: Inputs, cache: Cache | None = None, dtype=jnp.float32, unroll: int | None = None
) -> Output:
    """Hidden states of all positions.

    Without a cache, rows may be packed with documents and branches. With a cache (generation), each row continues one document:
    `inputs.position` counts from its first token, `inputs.segment` is 1 for tokens and 0 for the padding after them; its soft tokens
    are a group of their own (G = B).
    dtype is that of the activations and products; norms, softmax and logits are float32 in any case.
    unroll: groups per step of the scan; None = all of a small model on a CPU, where that is faster, else one, so that compile time
    does not grow with depth.
    """
    x, soft, soft_index = _embed(params, config, inputs, dtype)
    B, T = inputs.ids.shape
    if cache is not None and covers(params, config, cache, T, dtype):
        y, cache = decode_layers(params, config, x[:, 0], inputs.position[:, 0], inputs.segment[:, 0], cache)
        return Output(y[:, None], cache, jnp.zeros((), jnp.float32))
    index = jnp.broadcast_to(jnp.arange(T), (B, T)) if cache is None else inputs.position
    positions = Positions(index, inputs.position, inputs.segment, inputs.branch, inputs.group)
    group_positions = _group_positions(positions, len(soft))
    soft_positions = _soft_positions(group_positions, soft_index)
    if cache is not None and cache.soft.shape[1]:
        cache = _keep_soft(cache, soft, soft_positions)
        own = slice(None) if cache.rows is None else cache.rows
        soft, soft_positions = cache.soft[own], _kept_positions(cache.soft_index[own])
    context = _Context(
        positions, _sights(config, positions, cache), _angles(config, inputs.position), soft, soft_positions, group_positions
    )
    group_inputs, tail_inputs = _per_layer(params, config, inputs, x) if config.per_layer_width else (None, None)

    # Stacked weights are not scanned, which would copy each layer's part, but looked into by the number of the group.
    leaves, tree = jax.tree.flatten(params["groups"], is_leaf=lambda leaf: isinstance(leaf, Stacked))
    arrays = [None if isinstance(leaf, Stacked) else leaf for leaf in leaves]

    def group(carry, scanned):
        x, balance, caches = carry
        number, own_arrays, own = scanned
        own_leaves = [leaf.layer(number) if isinstance(leaf, Stacked) else array for leaf, array in zip(leaves, own_arrays, strict=True)]
        layer_params = jax.tree.unflatten(tree, own_leaves)
        new = []
        for i, layer in enumerate(config.pattern):
            own_input = None if own is None else own[i]
            layer_cache = replace(caches[i], index=number) if caches else None
            x, layer_cache, layer_balance, _ = _layer(layer_params[i], config, layer, x, context, layer_cache, own_input)
            balance += layer_balance
            new.append(layer_cache)
        return (x, balance, tuple(new) if caches else ()), None

    balance = jnp.zeros((), jnp.float32)
    new_groups: tuple[LayerCache, ...] = () if cache is None else cache.groups
    if config.num_groups:
        scanned = (jnp.arange(config.num_groups), arrays, group_inputs)
        (x, balance, new_groups), _ = jax.lax.scan(group, (x, balance, new_groups), scanned, unroll=unroll or _unroll(config))
    new_tail = []
    owned: dict[int, KeysValues] = {}  # by window, the newest that later layers may share
    for i, layer in enumerate(config.tail):
        own_input = None if tail_inputs is None else tail_inputs[i]
        shared = owned[layer.attention.window] if layer.attention.shares_kv else None
        x, layer_cache, layer_balance, owned[layer.attention.window] = _layer(
            params["tail"][i], config, layer, x, context, None if cache is None else cache.tail[i], own_input, shared
        )
        balance += layer_balance
        new_tail.append(layer_cache)
    with jax.named_scope("final_norm"):
        x = norm(params["final_norm"], config, x)
    if cache is not None:
        cache = replace(cache, groups=new_groups, tail=tuple(new_tail))
    expert_layers = sum(layer.experts is not None for layer in config.layers)
    return Output(x, cache, balance / max(expert_layers, 1))


def embedded(params: Params, config: ModelConfig, name: str, batch: SoftBatch, dtype) -> jax.Array:
    """Soft tokens [G, N, D] of one modality. `hidden` takes them in place of raw features, as `inputs.soft[EMBEDDED]`."""
    soft = next((s for s in config.soft_inputs if s.name == name), None)
    if soft is None:
        raise ValueError(f"model {config.name!r} has no input for {name}: add it to soft_inputs")
    return embed_soft(params["soft"], config, soft, batch, dtype)


def logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Hidden states [..., D] -> float32 logits [..., V], soft-capped if the config says so."""
    with jax.named_scope("unembed"):
        weight = params["embed"] if config.tied else params["unembed"]
        if isinstance(weight, Weight):
            y = weight.product(hidden.astype(jnp.float32))
        else:
            weight = weight.T if config.tied else weight
            y = jnp.matmul(hidden, weight.astype(hidden.dtype), preferred_element_type=jnp.float32)
        return config.logit_soft_cap * jnp.tanh(y / config.logit_soft_cap) if config.logit_soft_cap else y


def _unroll(config: ModelConfig) -> int:
    return config.num_groups if jax.default_backend() == "cpu" and config.num_layers <= 12 else 1


def _sights(config: ModelConfig, positions: Positions, cache: Cache | None) -> dict[tuple[int, bool], Sight]:
    kinds = {(layer.attention.window, layer.attention.two_way) for layer in config.layers}
    keys = {window: positions for window, _ in kinds}
    if cache is not None:
        caches = zip((*config.pattern[: len(cache.groups)], *config.tail), (*cache.groups, *cache.tail), strict=True)
        keys = {layer.attention.window: own.keys(positions) for layer, own in caches if own is not None}
    return {(w, two_way): Sight(additive_mask(visible(positions, keys[w], w, two_way)), keys[w].position) for w, two_way in kinds}


def _angles(config: ModelConfig, position_BT: jax.Array) -> dict[tuple[int, float, float], Angles]:
    """The angles of every kind of RoPE. As the outcome of a conditional they are computed once; otherwise XLA's CPU backend computes sines
    and cosines anew wherever they are read, for every head of every layer."""

    def of(position_BT: jax.Array) -> dict[tuple[int, float, float], Angles]:
        return {rope_kind(a): rope_angles(position_BT, *rope_kind(a)) for a in attentions if a.position == "rope"}

    attentions = [layer.attention for layer in config.layers]
    if jax.default_backend() != "cpu" or position_BT.shape[1] == 1:
        return of(position_BT)
    always = jnp.min(position_BT) >= 0
    return jax.lax.cond(always, of, lambda p: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), of(p)), position_BT)


def _embed(params: Params, config: ModelConfig, inputs: Inputs, dtype):
    """Token embeddings with the soft tokens in their places [B, T, D]; the soft tokens alone [G, N, D] and their index [G, N]."""
    B = len(inputs.ids)
    with jax.named_scope("embed"):
        x = _rows(params["embed"], inputs.ids, dtype)
        if config.embed_scale:
            x *= jnp.asarray(config.d_model**0.5, dtype)
        G = next((len(s.index) for s in inputs.soft.values()), B)
        soft, index = [jnp.zeros((G, 0, config.d_model), dtype)], [jnp.zeros((G, 0), jnp.int32)]
        for s in config.soft_inputs:
            if s.name in inputs.soft:
                soft.append(embed_soft(params["soft"], config, s, inputs.soft[s.name], dtype))
                index.append(inputs.soft[s.name].index)
        if EMBEDDED in inputs.soft:
            soft.append(inputs.soft[EMBEDDED].features.astype(dtype))
            index.append(inputs.soft[EMBEDDED].index)
        unknown = set(inputs.soft) - {s.name for s in config.soft_inputs} - {EMBEDDED}
        if unknown:
            raise ValueError(f"model {config.name!r} has no input for {', '.join(sorted(unknown))}: add it to soft_inputs")
        soft_GND, index_GN = jnp.concatenate(soft, 1), jnp.concatenate(index, 1)
        x = x.reshape(G, -1, config.d_model).at[jnp.arange(G)[:, None], index_GN].set(soft_GND, mode="drop").reshape(x.shape)
        if any(layer.attention.position == "sinusoidal" for layer in config.layers):
            x += sinusoids(inputs.position, config.d_model).astype(dtype)
    return x, soft_GND, index_GN


def _rows(table: jax.Array | Stacked, ids: jax.Array, dtype) -> jax.Array:
    return table.rows(ids, dtype) if isinstance(table, Stacked) else table[ids].astype(dtype)


def _per_layer(params: Params, config: ModelConfig, inputs: Inputs, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What each layer reads of its own: the token's embedding for it and a projection of the common input, averaged (Gemma 3n).

    Returns [num_groups, layers of the pattern, B, T, P] and [layers of the tail, B, T, P].
    """
    P, L, dtype = config.per_layer_width, config.num_layers, x_BTD.dtype
    with jax.named_scope("per_layer_inputs"):
        projected = matmul(x_BTD, params["per_layer"]["project"]) * jnp.asarray(config.d_model**-0.5, dtype)
        projected = norm(params["per_layer"]["norm"], config, projected.reshape(*inputs.ids.shape, L, P))
        ids = jnp.asarray(inputs.ids).reshape(next((len(s.index) for s in inputs.soft.values()), len(inputs.ids)), -1)
        for s in inputs.soft.values():
            ids = ids.at[jnp.arange(len(ids))[:, None], s.index].set(0, mode="drop")
        own = _rows(params["per_layer"]["embed"], ids.reshape(inputs.ids.shape), dtype).reshape(projected.shape)
        both = (projected + own * jnp.asarray(P**0.5, dtype)) * jnp.asarray(2**-0.5, dtype)
        by_layer = jnp.moveaxis(both, 2, 0)
        first = config.num_groups * len(config.pattern)
        return by_layer[:first].reshape(config.num_groups, -1, *both.shape[:2], P), by_layer[first:]


def _layer(
    params: Params,
    config: ModelConfig,
    layer: LayerConfig,
    x: jax.Array,
    context: _Context,
    cache: LayerCache | None,
    own_input: jax.Array | None = None,
    shared: KeysValues | None = None,
) -> tuple[jax.Array, LayerCache | None, jax.Array, KeysValues]:
    """One block; returns its output, its new cache, its balance loss and its keys and values.

    own_input [B, T, P]: this layer's own reading of the tokens. shared: keys and values of another layer.
    """

    def pre(name: str, x):
        return norm(params[f"{name}_pre_norm"], config, x) if config.pre_norm else x

    def add(name: str, x, y):
        if config.pre_norm:
            return x + (norm(params[f"{name}_post_norm"], config, y) if config.post_norm else y)
        return norm(params[f"{name}_post_norm"], config, x + y)

    def mix(h, x):
        """Dense feed-forward and routed experts, in parallel where a layer has both. h: x, normalised."""
        y, balance = jnp.zeros_like(h), jnp.zeros((), jnp.float32)
        with jax.named_scope("feed_forward"):
            if layer.feed_forward:
                y = feed_forward(params["feed_forward"], layer.feed_forward, h)
            if layer.experts and layer.experts.separate:
                y, balance = separate_experts(params["experts"], layer.experts, x, y, context.positions.segment, config.norm_eps)
            elif layer.experts:
                routed, balance = experts(params["experts"], layer.experts, h, context.positions.segment)
                y += routed
        return y, balance

    h = pre("attention", x)
    with jax.named_scope("attention"):
        sight = context.sights[layer.attention.window, layer.attention.two_way]
        angles = context.angles[rope_kind(layer.attention)] if layer.attention.position == "rope" else None
        y, cache, seen = self_attention(
            params["attention"], layer.attention, h, context.positions, angles, sight, config.norm_eps, cache, shared
        )
    if layer.parallel:
        mixed, balance = mix(h, x)
        x = add("attention", x, y + mixed)
    else:
        x = add("attention", x, y)
        mixed, balance = mix(pre("feed_forward", x), x)
        x = add("feed_forward", x, mixed)
    if layer.cross_attention and context.soft.shape[1]:
        with jax.named_scope("cross_attention"):
            h = pre("cross_attention", x)
            y = _cross_attention(params["cross_attention"], config, layer.cross_attention, h, context)
            x = add("cross_attention", x, jnp.tanh(params["cross_attention"]["gate"]).astype(y.dtype) * y)
    if own_input is not None:
        with jax.named_scope("per_layer"):
            gate = activation("gelu", matmul(x, params["per_layer"]["gate"]))
            x += norm(params["per_layer_post_norm"], config, matmul(gate * own_input, params["per_layer"]["out"]))
    if layer.layer_scale:
        x *= params["layer_scale"].astype(x.dtype)
    return x, cache, balance, seen


def _cross_attention(params: Params, config: ModelConfig, a: AttentionConfig, x_BTD, context: _Context):
    """Every position reads the soft tokens s before it: softmax(W_Q x (W_K s)^T / sqrt(H)) W_V s, no positions (Alayrac et al. 2022)."""
    a = replace(a, position="none")
    x = x_BTD.reshape(len(context.soft), -1, x_BTD.shape[-1])
    q, _, _ = project(params, a, x, context.group_positions.position, None, config.norm_eps)
    _, k, v = project(params, a, context.soft, context.soft_positions.position, None, config.norm_eps)
    queries, keys = (replace(p, group=jnp.zeros_like(p.group)) for p in (context.group_positions, context.soft_positions))
    mask = additive_mask(visible(queries, keys))
    return output(params, a, attend(q, k, v, mask, a.scale or a.head_dim**-0.5, a.soft_cap)).reshape(x_BTD.shape)


def _group_positions(positions: Positions, groups: int) -> Positions:
    """The rows of each group one after the other, as one row: [B, T] -> [G, B/G T]. Documents of different rows stay apart."""
    B, T = positions.index.shape
    row = jnp.arange(B)[:, None] % (B // groups)
    segment = jnp.where(positions.segment > 0, positions.segment + row * (T + 1), 0)
    apart = replace(positions, index=positions.index + row * T, segment=segment)
    return jax.tree.map(lambda x: x.reshape(groups, -1), apart)


def _soft_positions(positions: Positions, index_GN: jax.Array) -> Positions:
    """The positions of the soft tokens among those of their group; an unused slot gets segment 0."""
    end = positions.index.shape[1]
    at = jnp.minimum(index_GN, end - 1)
    taken = jax.tree.map(lambda x: jnp.take_along_axis(x, at, 1), positions)
    return replace(taken, segment=jnp.where(index_GN < end, taken.segment, 0))


def _keep_soft(cache: Cache, soft_BND: jax.Array, at: Positions) -> Cache:
    """Append the soft tokens of this chunk to those that the cache holds."""
    real = at.segment > 0
    rows = (jnp.arange(len(real)) if cache.rows is None else cache.rows)[:, None]
    used = jnp.sum(cache.soft_index[rows[:, 0]] >= 0, 1, keepdims=True)
    slot = jnp.where(real, used + jnp.cumsum(real, 1) - 1, cache.soft_index.shape[1])
    return replace(
        cache,
        soft=cache.soft.at[rows, slot].set(soft_BND.astype(cache.soft.dtype), mode="drop"),
        soft_index=cache.soft_index.at[rows, slot].set(at.index, mode="drop"),
    )


def _kept_positions(index_BC: jax.Array) -> Positions:
    zero = jnp.zeros_like(index_BC)
    return Positions(index_BC, index_BC, (index_BC >= 0).astype(jnp.int32), zero, zero)
